"""What one family of flow transformers is to the trainer: the few things in which they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ...families.transformers import TransformerFamily
from ...shapes import Float
from ...sites import Site
from ..base_model import TextConditions
from .texts import Reader

PATCH = 2  # side of a patch in latent cells, in every family here
CELL = 8  # side of a latent cell in pixels, likewise


@dataclass(frozen=True, eq=False)
class Asked:
    """One call of a transformer.

    Attributes:
        noisy: latents in the model's precision.
        times: 0 the picture, 1 noise.
        guidance: for models that were distilled to take it as an input.
    """

    noisy: Float[Tensor, "batch channels height width"]
    times: Float[Tensor, " batch"]
    text: TextConditions
    guidance: float = 1.0

    @property
    def grid(self) -> tuple[int, int]:
        """Patches from top to bottom and from left to right."""
        return self.noisy.shape[-2] // PATCH, self.noisy.shape[-1] // PATCH

    def packed(self) -> Float[Tensor, "batch patches values"]:
        """Latents patch by patch, as Flux and Qwen-Image take them."""
        return rearrange(self.noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)

    def unpacked(self, patches: Tensor) -> Float[Tensor, "batch channels height width"]:
        """The inverse of `packed`."""
        height, width = self.grid
        shape = {"h": height, "w": width, "p": PATCH, "q": PATCH}
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", **shape)


class FlowFamily(ABC):
    """One family; it has no state.

    Attributes:
        family: as the nodes know it.
        base: the name for people that the encoder file gets.
        label: for messages.
        pipelines: diffusers' classes whose models these are.
        text_encoders: the pipeline's parts that read text.
        is_video: whether latents have an axis of frames.
    """

    family: ClassVar[TransformerFamily]
    base: ClassVar[str]
    label: ClassVar[str]
    pipelines: ClassVar[Sequence[str]]
    text_encoders: ClassVar[Sequence[str]]
    is_video: ClassVar[bool] = False

    def problem(self, parts: Mapping[str, Any]) -> str | None:
        """What of a pipeline with these parts, as its index names them, cannot be trained with."""
        return None

    @abstractmethod
    def layer(self, site: Site) -> Any:
        """What stands at a site in the place of diffusers' processor."""

    def projections(self, attention: Any) -> tuple[Tensor, Tensor]:
        """The weights that make keys and values of a site's text."""
        if getattr(attention, "add_k_proj", None) is not None:
            return attention.add_k_proj.weight, attention.add_v_proj.weight
        return attention.to_k.weight, attention.to_v.weight

    @abstractmethod
    def readers(self, pipeline: Any) -> Sequence[Reader]:
        """The text encoders with rows of their own in the text."""

    @abstractmethod
    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Encoded texts `[batch, text_tokens, text_dim]`, and what else the model wants of them."""

    def num_text_tokens(self, asked: Asked) -> int:
        """Of the keys that are the text's, padding included."""
        return asked.text.context.shape[1]

    @abstractmethod
    def predict(self, model: Any, asked: Asked) -> Float[Tensor, "batch channels height width"]:
        """The velocity, noise - picture."""
