"""A subject: the tokens that an encoder made of one or several photographs."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .encoder import Encoder
from .errors import SubjectError
from .shapes import Float

CombineMode = Literal["concatenate", "average"]
_THUMBNAIL_SIZE = 128


@dataclass(frozen=True, eq=False)
class Subject:
    """Subject tokens together with the encoder that made them and alone can read them.

    Attributes:
        tokens: float32 on the CPU; several references stand side by side unless averaged.
        references: number of tokens that came from each reference image.
        noun: the word the encoder was trained with (a binding may choose another).
        thumbnail: base64 of a small JPEG of the first reference; empty if there is none.
    """

    tokens: Float[Tensor, "tokens output_dim"]
    encoder: Encoder
    references: tuple[int, ...]
    noun: str
    thumbnail: str = field(default="", repr=False)

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the tokens: equal for equal subjects, whichever object holds them."""
        return hashlib.sha256(self.tokens.contiguous().numpy().tobytes()).digest()


def combine_references(
    tokens: Float[Tensor, "references queries output_dim"], mode: CombineMode
) -> tuple[Float[Tensor, "tokens output_dim"], tuple[int, ...]]:
    """One subject's tokens from those of its reference images, and how many came from each.

    `concatenate` puts them side by side, so that a pixel finds the part in whichever photograph
    shows it best; `average` takes their mean, so that the cost stays that of one photograph.
    """
    num_references, num_queries, _ = tokens.shape
    if mode == "average":
        return tokens.mean(dim=0), (num_queries,)
    if mode == "concatenate":
        return tokens.flatten(0, 1), (num_queries,) * num_references
    raise SubjectError(f"combine is '{mode}', expected 'concatenate' or 'average'.")


def subject_from_features(
    encoder: Encoder,
    features: Float[Tensor, "references patches embedding_dim"],
    thumbnail: str,
    combine: CombineMode = "concatenate",
) -> Subject:
    """The subject whose reference photographs have these image-encoder features.

    The encoder must be where the features are. The tokens end on the CPU, in float32.
    """
    tokens, references = combine_references(encoder.encode(features).detach().cpu(), combine)
    return Subject(tokens.contiguous(), encoder, references, encoder.config.noun, thumbnail)


def make_thumbnail(image_hwc: Float[Tensor, "height width 3"]) -> str:
    """Base64 of a JPEG at most 128 pixels wide and high."""
    pixels = (image_hwc.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
