"""Encoders that differ from the shipped one in one respect, all trained at one smaller budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NESTED, DECOUPLED = "nested", "decoupled"
LONG_STEPS = 1500

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
        way: how the base model is told of subjects: nested attention, or one of `WAYS`.
        sites: the letters of the blocks where they act; all without it.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    way: str = NESTED
    sites: str = ""


def _long(ablation: Ablation) -> Ablation:
    """The same with a budget of its own."""
    return replace(ablation, settings={**ablation.settings, "steps": LONG_STEPS})


def _with_norm(scale: float) -> Ablation:
    norm = {"value_norm": "per_head", "value_norm_scale": scale}
    return Ablation({**_SETTINGS, "num_queries": 16, **norm})


_SETTINGS: Mapping[str, object] = {"value_norm": "none"}
ABLATIONS: Mapping[str, Ablation] = {
    "one_token": Ablation({**_SETTINGS, "num_queries": 1}),
    "decoupled": Ablation({**_SETTINGS, "num_queries": 16}, DECOUPLED),
    "nested_4": Ablation({**_SETTINGS, "num_queries": 4}),
    "nested_16": Ablation({**_SETTINGS, "num_queries": 16}),
    "nested_64": Ablation({**_SETTINGS, "num_queries": 64}),
    "nested_16_scale_1": _with_norm(1.0),
    "nested_16_scale_2": _with_norm(2.0),
    "nested_16_scale_4": _with_norm(4.0),
}

_NESTED = Ablation({**_SETTINGS, "num_queries": 16})
_OF_TRANSFORMERS: Mapping[str, Ablation] = {
    "one_token": ABLATIONS["one_token"],
    "decoupled": ABLATIONS["decoupled"],
    "joined": replace(_NESTED, way="joined"),
    "nested_16": _NESTED,
    "nested_16_scale_2": _with_norm(2.0),
    "nested_16_model_norm": Ablation({**_NESTED.settings, "nested_key": "model_norm"}),
    # One token more: it gives the key.
    "learned_key": Ablation({**_SETTINGS, "num_queries": 17}, "learned_key"),
    "moved_key": Ablation({**_SETTINGS, "num_queries": 17}, "moved_key"),
}
_OF_MODEL: Mapping[str, Mapping[str, Ablation]] = {
    "unet": ABLATIONS,
    "cross": _OF_TRANSFORMERS,
    "joint": {
        **_OF_TRANSFORMERS,
        # Decoupled attention learns nothing here before that.
        "decoupled_long": _long(ABLATIONS["decoupled"]),
        "nested_16_long": _long(_NESTED),
        "text_too": replace(_NESTED, way="text_too"),
        # Half of the blocks are double ones, and they come first.
        "double_blocks": replace(_NESTED, sites="d"),
        "single_blocks": replace(_NESTED, sites="s"),
    },
}


def steps_of(ablation: Ablation, budget: Mapping[str, object]) -> Any:
    """How long it is trained."""
    return ablation.settings.get("steps", budget["steps"])


def ablations_of(model: str) -> Mapping[str, Ablation]:
    """What is trained for one of the world's base models."""
    return _OF_MODEL[model]
