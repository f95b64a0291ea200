"""What the base model gains from words: how much nearer it comes when every part's colour is named.

Measured without a sampler, on what the model believes at full noise, where it has only the words.
"""

from __future__ import annotations

import numpy as np
import torch
from tiny_world import models, world
from tiny_world.prompts import UNSEEN, psnr
from torch import Tensor
from torch.nn import functional

from nested_core.training.base_model import Caption

from .data import random_cast
from .host import BaseModel


@torch.no_grad()
def text_gain(model: BaseModel, count: int = 64, style: str = "photo") -> dict[str, float]:
    """PSNR in dB on and off the subject, with no part named and with all of them."""
    draws = np.random.default_rng(UNSEEN)
    casts = [random_cast(draws, 1) for _ in range(count)]
    scenes = [world.random_scene(draws, style) for _ in casts]
    targets = np.stack([world.draw(*pair) for pair in zip(casts, scenes, strict=True)])
    masks = np.stack([world.subject_mask(cast[0]) for cast in casts])
    figures: dict[str, float] = {}
    for name, named in (("none", False), ("all", True)):
        captions = [
            world.caption(
                cast, scene, [list(world.PARTS[cast[0].identity.kind])] if named else None
            )
            for cast, scene in zip(casts, scenes, strict=True)
        ]
        believed = _believed(model, captions).numpy()
        figures[f"subject_{name}"] = psnr(believed, targets, masks)
        figures[f"background_{name}"] = psnr(believed, targets, ~masks)
    return figures


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
