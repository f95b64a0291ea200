"""Encoders that differ from the shipped one in one respect, all trained at one smaller budget."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The budget of every ablation, a small part of the shipped encoder's.
BUDGET: Mapping[str, object] = {
    "steps": 500,
    "batch_size": 16,
    "save_every": 100,
}


@dataclass(frozen=True)
class Ablation:
    """How an encoder is trained.

    Attributes:
        settings: of the trainer, besides the budget and what all encoders of the world have.
        decoupled: whether it is trained for decoupled cross-attention.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    decoupled: bool = False


def _with_norm(scale: float) -> Ablation:
    norm = {"value_norm": "per_head", "value_norm_scale": scale}
    return Ablation({**_SETTINGS, "num_queries": 16, **norm})


_SETTINGS: Mapping[str, object] = {"value_norm": "none"}
ABLATIONS: Mapping[str, Ablation] = {
    "one_token": Ablation({**_SETTINGS, "num_queries": 1}),
    "decoupled": Ablation({**_SETTINGS, "num_queries": 16}, decoupled=True),
    "nested_4": Ablation({**_SETTINGS, "num_queries": 4}),
    "nested_16": Ablation({**_SETTINGS, "num_queries": 16}),
    "nested_64": Ablation({**_SETTINGS, "num_queries": 64}),
    "nested_16_scale_1": _with_norm(1.0),
    "nested_16_scale_2": _with_norm(2.0),
    "nested_16_scale_4": _with_norm(4.0),
}


class TrainingNeededError(RuntimeError):
    """An ablation's encoder is not there and cannot be trained here."""


def encoder_file(folder: Path, name: str, base: str, budget: Mapping[str, object]) -> Path:
    """Where an ablation's encoder lies once it is trained; another base or budget, another file.

    Args:
        base: the hash of the base model's and the image encoder's files.
    """
    ablation = ABLATIONS[name]
    settings = [base, dict(ablation.settings), ablation.decoupled, dict(budget)]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return folder / "encoders" / f"{name}-{key}.safetensors"


def train_if_missing(file: Path, name: str, weights: Path, budget: Mapping[str, object]) -> None:
    """Trains the encoder, going on where an earlier call was stopped.

    Raises:
        TrainingNeededError: it is missing, and the trainer's tools are not at hand.
    """
    if file.exists():
        return
    if importlib.util.find_spec("accelerate") is None:
        raise TrainingNeededError(
            f"{name}: its encoder has to be trained first ({budget['steps']} steps), and accelerate, "
            "which the trainer needs, is not installed here. Run the same command with --tools, "
            "`python dev.py exec --tools demo/tiny_world/evaluate.py ...`, or leave it out with "
            "--methods main."
        )
    from .ablation_training import train_ablation

    train_ablation(ABLATIONS[name], budget, weights, file)
