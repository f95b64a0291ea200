"""Photographs to subject tokens through ComfyUI's own CLIP vision."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import comfy.utils
import torch
from comfy import model_management
from torch import Tensor

from ...nested_core.config import ImageEncoderConfig
from ...nested_core.encoder import Encoder
from ...nested_core.errors import SubjectError
from ...nested_core.preprocess import CropMode, clip_square, rgb_images, square_photographs
from ...nested_core.shapes import Float
from ...nested_core.subject import (
    CombineMode,
    Subject,
    make_thumbnail,
    parse_weights,
    subject_from_features,
)
from .model.kv_cache import encoder_patcher

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel

_OUTPUTS = {"penultimate": "penultimate_hidden_states", "last": "last_hidden_state"}


def encode_subject(
    encoder: Encoder,
    clip_vision: ClipVisionModel | None,
    image: Tensor,
    mask: Tensor | None,
    crop: str,
    combine: str,
    weights: str = "",
    node: str = "Encode Subject",
) -> tuple[Subject, list[Float[Tensor, "1 size size 3"]]]:
    """One subject from its reference photographs `image` `[references, height, width, channels]`.

    Beside it each reference as the image encoder saw it.

    Args:
        node: which one encodes, for messages about its image encoder.

    Raises:
        SubjectError: the image encoder is missing or another one, the pictures, the mask or the
            weights are unusable.
    """
    _check_image_encoder(encoder, clip_vision, node)
    photographs = square_photographs(rgb_images(image), mask, cast("CropMode", crop))
    parsed_weights = parse_weights(weights, len(photographs))
    clip_vision = cast("ClipVisionModel", clip_vision)
    seen = _squares(encoder, clip_vision, photographs)
    features = _patch_features(encoder, clip_vision, seen, node)
    patcher = encoder_patcher(encoder)
    model_management.load_models_gpu([patcher])
    subject = subject_from_features(
        encoder,
        features.to(patcher.load_device),
        make_thumbnail(photographs[0][0]),
        cast("CombineMode", combine),
        parsed_weights,
    )
    return subject, seen


def _squares(
    encoder: Encoder, clip_vision: ClipVisionModel, photographs: list[Tensor]
) -> list[Tensor]:
    """The photographs as ComfyUI would crop and resize them: it leaves such squares as they are.

    Where ComfyUI would do it, since devices resize differently in the last bits.
    """
    size = encoder.config.image_encoder.image_size
    return [
        clip_square(photo.to(getattr(clip_vision, "load_device", photo.device)), size)
        for photo in photographs
    ]


def _patch_features(
    encoder: Encoder, clip_vision: ClipVisionModel, squares: list[Tensor], node: str
) -> Tensor:
    wanted = encoder.config.image_encoder
    output = _OUTPUTS[wanted.hidden_state]
    progress = comfy.utils.ProgressBar(len(squares))
    features = list[Tensor]()
    for square in squares:
        features.append(clip_vision.encode_image(square, crop=True)[output])
        progress.update(1)
    size = features[0].shape[-1]
    if size != wanted.hidden_size:
        raise SubjectError(_wrong_image_encoder(encoder, f"hidden size {size}", node))
    return torch.cat(features)


def _check_image_encoder(encoder: Encoder, clip_vision: ClipVisionModel | None, node: str) -> None:
    wanted = encoder.config.image_encoder
    if clip_vision is None:
        raise SubjectError(
            f"{node}: encoder '{encoder.name}' reads {_describe(wanted)}, but clip_vision "
            "is not connected. Add a Load CLIP Vision node and connect it."
        )
    size = getattr(clip_vision, "image_size", wanted.image_size)
    if size != wanted.image_size:
        raise SubjectError(_wrong_image_encoder(encoder, f"image size {size}", node))


def _wrong_image_encoder(encoder: Encoder, found: str, node: str) -> str:
    return (
        f"{node}: encoder '{encoder.name}' reads {_describe(encoder.config.image_encoder)}, "
        f"but the connected CLIP vision model has {found}. Load the CLIP vision model that the "
        "encoder was trained with (ViT-H/14 has hidden size 1280, ViT-L/14 1024)."
    )


def _describe(config: ImageEncoderConfig) -> str:
    return f"a CLIP vision model of hidden size {config.hidden_size} at {config.image_size} px"
