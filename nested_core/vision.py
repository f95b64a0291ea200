"""Photographs to subjects without ComfyUI, through an image encoder of the transformers library.

Training and scripts use this; inside ComfyUI its own CLIP vision takes the place of the image
encoder. Both give the same tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import HiddenState
from .encoder import Encoder
from .preprocess import CropMode, clip_pixels, rgb_images, square_photographs
from .shapes import Float
from .subject import CombineMode, Subject, make_thumbnail, subject_from_features

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection


def patch_features(
    image_encoder: CLIPVisionModelWithProjection,
    pixels: Float[Tensor, "batch 3 size size"],
    hidden_state: HiddenState,
) -> Float[Tensor, "batch patches hidden_size"]:
    """What the resampler reads: the last or the penultimate hidden state, CLS token included."""
    outputs = image_encoder(pixel_values=pixels, output_hidden_states=True)
    hidden_states = outputs.hidden_states
    assert hidden_states is not None
    return hidden_states[-2 if hidden_state == "penultimate" else -1]


@torch.no_grad()
def encode_photographs(
    encoder: Encoder,
    image_encoder: CLIPVisionModelWithProjection,
    image_bhwc: Float[Tensor, "references height width channels"],
    mask: Tensor | None = None,
    crop: CropMode = "center",
    combine: CombineMode = "concatenate",
) -> Subject:
    """One subject from its reference photographs, values in [0, 1].

    Raises:
        SubjectError: the pictures or the mask are unusable.
    """
    config = encoder.config.image_encoder
    photographs = square_photographs(rgb_images(image_bhwc), mask, crop)
    pixels = torch.cat([clip_pixels(photo, config.image_size) for photo in photographs])
    features = patch_features(image_encoder, pixels.to(image_encoder.device), config.hidden_state)
    thumbnail = make_thumbnail(photographs[0][0])
    return subject_from_features(encoder, features, thumbnail, combine)
