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

from ..ablations import TrainingNeededError

STEPS = 1200


def open_weights(folder: Path, weights: Path, base_hash: str, steps: int = STEPS) -> Path:
    """The folder of this base model's weights, trained first where it is missing.

    Raises:
        TrainingNeededError: it is missing and cannot be trained here.
    """
    found = folder / "encoders" / f"open_base-{steps}-{base_hash[:12]}"
    if not (found / "complete").exists():
        _train(found, weights, steps)
    return found


def _train(found: Path, weights: Path, steps: int) -> None:
    try:
        from nested_core.training.processes import make_accelerator
    except ImportError as error:
        raise TrainingNeededError(
            f"several subjects: their base model has to be trained first ({steps} steps), and "
            "accelerate, which that needs, is not installed here. Run the same command with "
            "--tools, `python dev.py exec --tools demo/tiny_world/evaluate.py ...`."
        ) from error
    from ... import models
    from ...base_training import BaseTrainer, BaseTraining
    from ...data import open_examples
    from ...host import TinyWorldHost
    from ...train import encoder_config

    settings = BaseTraining(
        steps=steps, learning_rate=3e-4, warmup_steps=20, ema_decay=0.99, seed=5
    )
    # ComfyUI may have switched gradients off in this process: it has drawn pictures.
    with torch.inference_mode(False), torch.enable_grad():
        model = TinyWorldHost(weights).model.requires_grad_(True).train()
        accelerator = make_accelerator(encoder_config(found))
        finished = BaseTrainer(settings, found, accelerator, model, open_examples).run()
    if not finished:
        sys.exit(1)
    accelerator.end_training()
    for name in (models.VISION_FILE, models.ENCODER_FILE):
        shutil.copyfile(weights / name, found / name)
    (found / "complete").touch()
