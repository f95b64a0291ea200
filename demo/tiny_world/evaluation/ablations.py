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


ABLATIONS: Mapping[str, Ablation] = {
    "one_token": Ablation({"num_queries": 1}),
    "decoupled": Ablation({"num_queries": 16, "value_norm": "none"}, decoupled=True),
    "nested_4": Ablation({"num_queries": 4}),
    "nested_16": Ablation({"num_queries": 16}),
    "nested_64": Ablation({"num_queries": 64}),
    "nested_16_no_norm": Ablation({"num_queries": 16, "value_norm": "none"}),
    "nested_16_scale_1": Ablation({"num_queries": 16, "value_norm_scale": 1.0}),
    "nested_16_scale_4": Ablation({"num_queries": 16, "value_norm_scale": 4.0}),
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
