"""Photographs to a subject, the one way for every image encoder: ComfyUI's own or transformers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from .config import HiddenState, ImageEncoderConfig
from .encoder import Encoder
from .errors import SubjectError
from .preprocess import CropMode, clip_pixels, clip_square, rgb_images, square_photographs
from .shapes import Float
from .subject import CombineMode, Subject, make_thumbnail, parse_weights, subject_from_features

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection


class ImageEncoder(NamedTuple):
    """A CLIP vision model, by the function that computes its features.

    Attributes:
        features: of squares `[1, size, size, 3]`, `[references, patches, hidden_size]`, CLS token
            included, on the device where the subject's encoder is.
        image_size: in pixels, where it is known.
        device: where the squares are made, since devices resize differently in the last bits. None
            is where the photographs are.
    """

    features: Callable[[Sequence[Tensor], HiddenState], Tensor]
    image_size: int | None = None
    device: torch.device | None = None


@torch.no_grad()
def encode_photographs(
    encoder: Encoder,
    image_encoder: ImageEncoder | None,
    image_bhwc: Tensor,
    mask: Tensor | None = None,
    crop: CropMode = "center",
    combine: CombineMode = "concatenate",
    weights: str = "",
    node: str = "Encode Subject",
) -> tuple[Subject, list[Float[Tensor, "1 size size 3"]]]:
    """One subject from its reference photographs `[references, height, width, channels]` in [0, 1].

    Beside it each reference as the image encoder saw it.

    Args:
        node: which one encodes, for messages about its image encoder.

    Raises:
        SubjectError: the image encoder is missing or another one, the pictures, the mask or the
            weights are unusable.
    """
    wanted = encoder.config.image_encoder
    size = wanted.image_size
    if image_encoder is None:
        raise SubjectError(
            f"{node}: encoder '{encoder.name}' reads {_described(wanted)}, but clip_vision is not "
            "connected. Add a Load CLIP Vision node and connect it."
        )
    _check_size(encoder, "image size", image_encoder.image_size or size, size, node)
    photographs = square_photographs(rgb_images(image_bhwc), mask, crop)
    parsed_weights = parse_weights(weights, len(photographs))
    # As ComfyUI would crop and resize them: it leaves such squares as they are.
    squares = [clip_square(photo.to(image_encoder.device), size) for photo in photographs]
    features = image_encoder.features(squares, wanted.hidden_state)
    _check_size(encoder, "hidden size", features.shape[-1], wanted.hidden_size, node)
    thumbnail = make_thumbnail(photographs[0][0])
    return subject_from_features(encoder, features, thumbnail, combine, parsed_weights), squares


def _check_size(encoder: Encoder, what: str, found: int, wanted: int, node: str) -> None:
    if found != wanted:
        raise SubjectError(
            f"{node}: encoder '{encoder.name}' reads {_described(encoder.config.image_encoder)}, "
            f"but the connected CLIP vision model has {what} {found}. Load the CLIP vision model "
            "that the encoder was trained with (ViT-H/14 has hidden size 1280, ViT-L/14 1024)."
        )


def _described(config: ImageEncoderConfig) -> str:
    return f"a CLIP vision model of hidden size {config.hidden_size} at {config.image_size} px"


def transformers_encoder(model: CLIPVisionModelWithProjection) -> ImageEncoder:
    """An image encoder of the transformers library, for scripts and tests."""
    size = cast("int", model.config.image_size)

    def features(squares: Sequence[Tensor], hidden_state: HiddenState) -> Tensor:
        pixels = torch.cat([clip_pixels(square, size) for square in squares])
        return patch_features(model, pixels.to(model.device), hidden_state)

    return ImageEncoder(features, size)


def patch_features(
    model: CLIPVisionModelWithProjection,
    pixels: Float[Tensor, "batch 3 size size"],
    hidden_state: HiddenState,
) -> Float[Tensor, "batch patches hidden_size"]:
    """What the resampler reads: the last or the penultimate hidden state, CLS token included."""
    outputs = model(pixel_values=pixels, output_hidden_states=True)
    hidden_states = outputs.hidden_states
    assert hidden_states is not None
    return hidden_states[-2 if hidden_state == "penultimate" else -1]
