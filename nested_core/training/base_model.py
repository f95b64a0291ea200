"""What the trainer asks of a base model, what passes between them, and what helps to be one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..config import HiddenState, ImageEncoderConfig
from ..families import DEFAULT_FAMILY, AnyFamily
from ..prompt import MarkedToken, mark_tokens
from ..shapes import Float, Int
from ..sites import Site
from .nested_attention import NestedSubjects
from .noise_schedule import NoiseSchedule

SUBJECT = "{subject}"
_END_OF_NOUN = "\U000f0000"  # a private code point, as in `prompt.py`


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
    """Where a training picture was cut from, in SDXL's order of its size conditioning. Pixels."""

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
        positions: the token in which each row's noun ends; -1 where no subject is bound. Where
            several text encoders have rows of their own, one place for each, `[batch, places]`.
        extras: whatever else the base model wants with them (SDXL: pooled text and sizes).
    """

    context: Float[Tensor, "batch text_tokens text_dim"]
    positions: Int[Tensor, " batch"] | Int[Tensor, "batch places"]
    extras: Mapping[str, Tensor] = field(default_factory=lambda: {})


@runtime_checkable
class BaseModel(Protocol):
    """A frozen base model with its text encoders, latent space and image encoder."""

    base: str
    family: AnyFamily
    schedule: NoiseSchedule
    site_dims: Mapping[Site, int]
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

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
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
        """The base model's prediction; `times` as `NoiseSchedule.timesteps` gives them."""
        ...


@dataclass(frozen=True)
class CaptionTokenizer:
    """A tokenizer of the transformers library with the length that the text encoder reads.

    `name` is the family's.
    """

    tokenizer: Any
    length: int
    name: str = "l"
    family: AnyFamily = DEFAULT_FAMILY

    def __call__(self, caption: Caption) -> tuple[list[int], int]:
        """Token ids at full length, and the position of the noun's last token (-1 without one).

        A caption whose noun lies behind the last position that is read would bind nothing; it is
        replaced by the noun alone.
        """
        ids, position = self.find(caption)
        is_bound = SUBJECT in caption.text
        if is_bound and not 0 <= position < self.length - 1:
            if caption.text == SUBJECT:
                raise ValueError(f"the noun '{caption.noun}' has no token that the encoder reads")
            logging.warning("The noun is out of reach, caption left out: %r", caption.text[:200])
            return self(Caption(SUBJECT, caption.noun))
        return self._at_full_length(ids), position

    def find(self, caption: Caption) -> tuple[list[int], int]:
        """Token ids at whatever length, and the position of the noun's last token; -1 without one."""
        marked = caption.text.replace(SUBJECT, caption.noun + _END_OF_NOUN, 1)
        marked = marked.replace(SUBJECT, caption.noun)
        ids = mark_tokens(marked, {_END_OF_NOUN: 1}, self._ids, self._lengths)
        marked_ids = (index for index, token in enumerate(ids) if isinstance(token, MarkedToken))
        return [int(token) for token in ids], next(marked_ids, -1)

    def _at_full_length(self, ids: list[int]) -> list[int]:
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], self.tokenizer.eos_token_id]
        return ids + [self.tokenizer.pad_token_id] * (self.length - len(ids))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _lengths(self, ids: list[int]) -> list[int]:
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        words: Sequence[str] = self.tokenizer.convert_ids_to_tokens(ids)
        return [
            0 if token in special else self.family.num_characters(self.name, word)
            for token, word in zip(ids, words, strict=True)
        ]


def randomise_rows(
    generators: Sequence[torch.Generator], draw: Callable[..., Tensor], *shape: int
) -> Float[Tensor, "batch *shape"]:
    """A draw per row from the row's own generator, on the CPU: the same on every device.

    Args:
        draw: `torch.rand` or `torch.randn`.
    """
    return torch.stack([draw(shape, generator=generator) for generator in generators])
