"""What the trainer asks of a base model, of data, and what passes between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..config import HiddenState, ImageEncoderConfig
from ..shapes import Bool, Float, Int
from ..sites import AttentionSite
from .loss import NoiseSchedule
from .subjects import NestedSubjects

SUBJECT = "{subject}"


@dataclass(frozen=True)
class Caption:
    """A caption with `{subject}` where the noun goes; without it, no subject is bound."""

    text: str
    noun: str

    @property
    def plain(self) -> str:
        """What the text encoder reads."""
        return self.text.replace(SUBJECT, self.noun)


@dataclass(frozen=True)
class PictureSize:
    """Where a training picture was cut from, as SDXL is told it. Pixels."""

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class TextConditions:
    """Encoded captions.

    Attributes:
        context: text tokens that cross-attention reads.
        positions: the token in which each row's noun ends; -1 where no subject is bound.
        extras: whatever else the base model wants with them (SDXL: pooled text and sizes).
    """

    context: Float[Tensor, "batch text_tokens text_dim"]
    positions: Int[Tensor, " batch"]
    extras: Mapping[str, Tensor] = field(default_factory=lambda: {})


@dataclass(eq=False)
class Batch:
    """The samples of one process and micro-step.

    Attributes:
        pixels: in [-1, 1].
        reference_pixels: as the image encoder wants them.
        masks: 1 on the subject; 1 everywhere for samples without a mask.
        image_dropped: rows whose reference is withheld from the encoder.
        seeds: one per sample; everything random in its step follows from it.
        skipped: names and reasons of the examples that could not be read on the way here.
        resume: where this process's stream goes on behind this batch; JSON.
    """

    pixels: Float[Tensor, "batch 3 height width"]
    reference_pixels: Float[Tensor, "batch 3 size size"]
    captions: Sequence[Caption]
    masks: Float[Tensor, "batch 1 height width"]
    image_dropped: Bool[Tensor, " batch"]
    sizes: Sequence[PictureSize]
    seeds: Sequence[int]
    skipped: Mapping[str, str] = field(default_factory=lambda: {})
    resume: Any = None


@dataclass(frozen=True)
class Stripe:
    """The share of a stream of batches that one of several processes takes."""

    process: int = 0
    num_processes: int = 1


@runtime_checkable
class Data(Protocol):
    """An endless stream of batches in an order that seed and epoch decide."""

    def batches(self, resume: Any, stripe: Stripe) -> Iterator[Batch]:
        """This process's batches from the start, or from where a batch's `resume` points."""
        ...

    def some_captions(self, count: int) -> Sequence[Caption]:
        """The first captions, to learn from what the base model's text tokens look like."""
        ...


@runtime_checkable
class Host(Protocol):
    """A frozen base model with its text encoders, latent space and image encoder."""

    base: str
    schedule: NoiseSchedule
    site_dims: Mapping[AttentionSite, int]
    text_dim: int
    image_encoder: ImageEncoderConfig

    def frozen_modules(self) -> Sequence[nn.Module]:
        """Everything that must not change."""
        ...

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the frozen modules to where and in which precision they will run."""
        ...

    def save_memory(self) -> None:
        """Recomputes the base model's activations in the backward pass (gradient checkpointing)."""
        ...

    def projection_weights(self, site: AttentionSite) -> tuple[Tensor, Tensor]:
        """The base model's own `to_k` and `to_v` weights of a site, `[inner, text_dim]`."""
        ...

    def encode_captions(
        self, captions: Sequence[Caption], sizes: Sequence[PictureSize]
    ) -> TextConditions:
        """Text tokens, and where the nouns end."""
        ...

    def encode_pixels(
        self, pixels: Tensor, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch channels height width"]:
        """Latents of pictures in [-1, 1], float32. Anything random comes from the row's generator."""
        ...

    def decode_latents(self, latents: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """Pictures in [-1, 1], float32."""
        ...

    def patch_features(
        self, pixels: Tensor, hidden_state: HiddenState
    ) -> Float[Tensor, "batch patches hidden_size"]:
        """The image encoder's features of reference pictures."""
        ...

    def predict(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        times: Tensor,
        text: TextConditions,
        subjects: NestedSubjects | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The base model's prediction; `times` as `NoiseSchedule.times_told` gives them."""
        ...
