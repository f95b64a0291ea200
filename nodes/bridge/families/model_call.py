"""One call of a model, whatever its family: who acts, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import comfy.cli_args
import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ....nested_core.call.plan import CallPlan
from ....nested_core.call.sighting import Watch
from ....nested_core.sites import Site

# Where the options say which call it is, for whoever looks on.
CALL_KEY = "nested_attention"


def _say_nothing(sentence: str, kind: str) -> None:
    """For calls in which nobody acts."""


@dataclass(eq=False)
class ModelCall:
    """What the attention layers need to know during one call of the model.

    Attributes:
        plan: who acts. Finished; the rest is what this call meets on its way.
        say: tells the user a sentence, once for each kind in a sampling.
        reached: the sites that were run, added to by this call.
        watch: told of what each site has shown; None if nobody wants to know.
        is_over: what is left of this call in somebody's memory acts no more.
    """

    plan: CallPlan = field(default_factory=CallPlan)
    say: Callable[..., None] = _say_nothing
    reached: set[Site] = field(default_factory=set[Site])
    watch: Watch | None = None
    is_over: bool = False

    def acts_at(self, site: Site) -> bool:
        """Whether some subject is to act there."""
        return site in self.plan.sites

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelCall:
        # It is a moment, of which there is one: packs copy options with all that is in them.
        return self


CallT = TypeVar("CallT", bound=ModelCall)

# For compiled models, whose trace may hold no call; and so that a call within one is noticed.
current_call: ContextVar[ModelCall | None] = ContextVar("nested_attention_call", default=None)


class Standing:
    """Anything of ours in the options, told from what is other packs'."""

    def __init__(self, call: Any) -> None:
        self.call = call

    @property
    def acting(self) -> Any:
        """The call that is under way: some packs keep the options of an earlier one and use them."""
        return (current_call.get() or self.call) if self.call.is_over else self.call


@contextmanager
def resting(call: ModelCall | None) -> Iterator[None]:
    """Nothing of this call acts meanwhile, wherever somebody kept it."""
    if call is None or call.is_over:
        yield
        return
    call.is_over = True
    try:
        yield
    finally:
        call.is_over = False


@contextmanager
def traced_apart() -> Iterator[None]:
    """Keeps the traces of a bound and a plain model apart, which are compiled from the same code.

    TorchCompileModel has the compiler ignore what is in the options, where all our differences are.
    This harmless setting of PyTorch is one that every trace does check.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(not before)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def host_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The attention backend that the user chose for ComfyUI, in full precision.

    Without transformer options: a foreign override of the model's attentions is not meant for ours.
    """
    return _backend(query.device.type, bias)(
        query,
        key,
        value,
        query.shape[1],
        mask=bias,
        attn_precision=torch.float32,
        skip_reshape=True,
        skip_output_reshape=True,
        low_precision_attention=False,
    )


def computes_as_pytorch(function: Callable[..., Tensor], query: Tensor) -> bool:
    """Whether PyTorch's attention may stand in for a function of ComfyUI's: equal up to rounding.

    That is so on the CPU, for ComfyUI's own call of it and for what it falls back to there. On a GPU
    PyTorch has kernels that differ by more.
    """
    attention = comfy.ldm.modules.attention
    if query.device.type != "cpu" or query.dtype != torch.float32:
        return False
    known: list[Callable[..., Tensor]] = [attention.attention_pytorch]
    if _falls_back():
        known.append(attention.attention_sub_quad)
    return _unwrapped(function) in [_unwrapped(each) for each in known]


def _unwrapped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return getattr(function, "__wrapped__", function)


def _falls_back() -> bool:
    """Whether ComfyUI has taken the sub-quadratic attention because the user named nothing else."""
    attention, args = comfy.ldm.modules.attention, comfy.cli_args.args
    is_named = args.use_split_cross_attention or args.use_quad_cross_attention
    return attention.optimized_attention is attention.attention_sub_quad and not is_named


def _backend(device: str, bias: Tensor | None) -> Callable[..., Tensor]:
    attention = comfy.ldm.modules.attention
    chosen = attention.optimized_attention
    if bias is not None and chosen is attention.attention_flash:
        # It takes no bias: it would warn at every call, and compute the same as this.
        return attention.attention_pytorch
    if device == "cpu" and _falls_back():
        # The fallback takes up to three times as long there as PyTorch's kernel.
        return attention.attention_pytorch
    return chosen
