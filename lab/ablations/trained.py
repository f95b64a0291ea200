"""Finds what the shipped encoder is compared with, and has it trained where it is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from tiny_world.files import UNET

from .encoders import ablations_of


class TrainingNeededError(RuntimeError):
    """Something to compare with is not there, and the trainer's tools are not at hand."""


def require_trainer(name: str, steps: object, otherwise: str) -> None:
    """Raises TrainingNeededError where nothing can be trained."""
    if importlib.util.find_spec("accelerate") is None:
        raise TrainingNeededError(
            f"{name}: has to be trained first ({steps} steps), and accelerate, which the trainer "
            "needs, is not installed here. Run the same command with --tools, "
            f"`python dev.py exec --tools lab/evaluate.py ...`, or {otherwise}."
        )


def trained_encoder(
    folder: Path,
    name: str,
    base_hash: str,
    weights: Path,
    budget: Mapping[str, object],
    model: str = UNET,
) -> Path:
    """The file of an ablation's encoder; another base or budget, another file.

    It is trained now if it is missing, going on where an earlier call was stopped.

    Args:
        base_hash: of the base model's and the image encoder's files.

    Raises:
        TrainingNeededError: it is missing and cannot be trained here.
    """
    ablation = ablations_of(model)[name]
    way = [ablation.way, ablation.sites]
    settings = [base_hash, dict(ablation.settings), way, dict(budget)]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / "encoders" / f"{name}-{key}.safetensors"
    if not file.exists():
        require_trainer(name, budget["steps"], "leave it out with --methods main")
        from .training import train_ablation

        train_ablation(ablation, budget, weights, file, model)
    return file
