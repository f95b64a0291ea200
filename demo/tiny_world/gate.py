"""Whether the base model has learned to hear: how much naming every part's colour gains.

Measured without a sampler, on what the model believes at full noise, where it has only the words.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nested_core.training.base_model import Caption

from . import models, world
from .data import random_cast
from .host import BaseModel
from .prompts import UNSEEN, psnr


@torch.no_grad()
def hearing(model: BaseModel, count: int = 64, style: str = "photo") -> dict[str, float]:
    """PSNR in dB on and off the subject, with no part named and with all of them."""
    draws = np.random.default_rng(UNSEEN)
    casts = [random_cast(draws, 1) for _ in range(count)]
    scenes = [world.random_scene(draws, style) for _ in casts]
    right = np.stack([world.draw(*each) for each in zip(casts, scenes, strict=True)])
    masks = np.stack([world.subject_mask(cast[0]) for cast in casts])
    found: dict[str, float] = {}
    for name, named in (("none", False), ("all", True)):
        captions = [
            world.caption(
                cast, scene, [list(world.PARTS[cast[0].identity.kind])] if named else None
            )
            for cast, scene in zip(casts, scenes, strict=True)
        ]
        believed = _believed(model, captions).numpy()
        found[f"subject_{name}"] = psnr(believed, right, masks)
        found[f"background_{name}"] = psnr(believed, right, ~masks)
    return found


def _believed(model: BaseModel, captions: list[str]) -> Tensor:
    """The picture that the model expects from the words alone, `[batch, 32, 32, 3]` in [0, 1]."""
    device = model.token_ids.device
    cells = world.SIZE // models.BLOCK
    noise = torch.randn(
        (len(captions), models.LATENT_CHANNELS, cells, cells),
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    rows, _ = model.rows([Caption(text, "") for text in captions])
    prediction = model(noise, torch.full((len(captions),), 1000.0, device=device), rows)
    pixels = functional.pixel_shuffle(noise - prediction, models.BLOCK).movedim(1, -1)
    return ((pixels + 1.0) / 2.0).clamp(0.0, 1.0).cpu()
