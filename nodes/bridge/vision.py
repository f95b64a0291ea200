"""ComfyUI's own CLIP vision as the image encoder that photographs become a subject through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import comfy.utils
import torch
from comfy import model_management
from torch import Tensor

from ...nested_core.config import HiddenState
from ...nested_core.encoder import Encoder
from ...nested_core.vision import ImageEncoder
from .model.kv_cache import encoder_patcher

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel

_OUTPUTS = {"penultimate": "penultimate_hidden_states", "last": "last_hidden_state"}


def image_encoder(encoder: Encoder, clip_vision: ClipVisionModel | None) -> ImageEncoder | None:
    """What computes features for `encoder`, which is brought where they are; None for None."""
    if clip_vision is None:
        return None

    def features(squares: Sequence[Tensor], hidden_state: HiddenState) -> Tensor:
        progress = comfy.utils.ProgressBar(len(squares))
        found = list[Tensor]()
        for square in squares:
            found.append(clip_vision.encode_image(square, crop=True)[_OUTPUTS[hidden_state]])
            progress.update(1)
        patcher = encoder_patcher(encoder)
        model_management.load_models_gpu([patcher])
        return torch.cat(found).to(patcher.load_device)

    size, device = (getattr(clip_vision, name, None) for name in ("image_size", "load_device"))
    return ImageEncoder(features, size, device)
