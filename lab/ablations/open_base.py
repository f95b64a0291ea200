"""A base model that is not told who stands where, so that subjects have to sort themselves out.

The shipped base model has learned that captions say each subject's place, and it attends to the
right noun everywhere: there is no bleed to remove. This one goes on from it for a few minutes with
captions such as `a photo in the city, person, dog`, which name two subjects in any order.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from tiny_world import models
from tiny_world.files import FILES, UNET

from .trained import require_trainer

STEPS = 1200


def open_weights(
    folder: Path, weights: Path, base_hash: str, model: str = UNET, steps: int = STEPS
) -> Path:
    """The folder of this base model's weights, trained first where it is missing.

    Raises:
        TrainingNeededError: it is missing and cannot be trained here.
    """
    run = folder / "encoders" / f"open_base-{steps}-{base_hash[:12]}"
    if not (run / "complete").exists():
        require_trainer("the base model of several subjects", steps, "leave out --several")
        _train(run, weights, model, steps)
    return run


def _train(run: Path, weights: Path, name: str, steps: int) -> None:
    from nested_core.training.processes import make_accelerator

    from ..training.base_model import BaseTrainer, BaseTraining
    from ..training.data import open_examples
    from ..training.encoder import encoder_config
    from ..training.host import TinyWorldHost

    settings = BaseTraining(
        steps=steps, learning_rate=3e-4, warmup_steps=20, ema_decay=0.99, seed=5
    )
    # ComfyUI may have switched gradients off in this process: it has drawn pictures.
    with torch.inference_mode(False), torch.enable_grad():
        model = TinyWorldHost(weights, name).model.train()
        (model if name == UNET else model.denoiser).requires_grad_(True)
        accelerator = make_accelerator(encoder_config(run))
        finished = BaseTrainer(settings, run, accelerator, model, open_examples).run()
    if not finished:
        sys.exit(1)
    accelerator.end_training()
    beside = [models.VISION_FILE, FILES[name].encoder]
    for file in beside if name == UNET else [*beside, models.BASE_FILE]:
        shutil.copyfile(weights / file, run / file)
    (run / "complete").touch()
