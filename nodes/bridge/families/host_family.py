"""What the bridge asks of a family of models: how ComfyUI's models of it are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ....nested_core.call.plan import CallPlan
from ....nested_core.call.sighting import Watch
from ....nested_core.families import AnyFamily
from ....nested_core.sites import Site
from .model_call import ModelCall


class HostFamily(Protocol):
    """One family, on the host's side. It has no state."""

    @property
    def family(self) -> AnyFamily:
        """The core's side."""
        ...

    @property
    def label(self) -> str:
        """Its models' names, for messages."""
        ...

    @property
    def tokenizers(self) -> Mapping[frozenset[str], str]:
        """The sets of tokens that text encoders for these models make, and whose they are."""
        ...

    def fits(self, base_model: Any) -> bool:
        """Whether a model of ComfyUI (`ModelPatcher.model`) is of this family."""
        ...

    def site_dims(self, model: Any) -> dict[Any, int]:
        """Inner width of the keys (heads * head_dim) of each site of a `diffusion_model`."""
        ...

    def functions(self, model: Any) -> Iterable[Any]:
        """What runs inside a `diffusion_model`, where other packs put functions of their own."""
        ...

    def call(
        self,
        base_model: Any,
        x: Tensor,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
        plan: CallPlan,
        say: Callable[..., None],
        reached: set[Site],
        watch: Watch | None,
    ) -> ModelCall:
        """What the attention layers need to know during one call of the model; see `ModelCall`.

        Args:
            x: the latent, `[rows, channels, (frames,) height, width]`.
            options: ComfyUI's, with nothing of ours in them.
            conditions: what else the model is called with, by name.
        """
        ...

    def put_up(self, options: Mapping[str, Any], call: Any) -> dict[str, Any]:
        """A copy of the options in which the subjects of this call act."""
        ...

    def put_up_compiled(self, options: Mapping[str, Any], call: Any) -> dict[str, Any]:
        """The same for a compiled model: what stands there finds the call when it runs."""
        ...

    def take_down(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A copy without anything of ours: some remember options of an earlier or a wider call."""
        ...
