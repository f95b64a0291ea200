"""Encoders that differ from the shipped one in one respect, all trained at one smaller budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
