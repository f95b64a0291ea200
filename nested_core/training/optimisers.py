"""Optimisers by name, and the learning rate of a step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from .errors import TrainingError

LearningRateSchedule = Literal["constant", "linear", "cosine"]


def make_optimiser(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> Optimizer:
    """An optimiser of `torch.optim` by its class's name; one of bitsandbytes where torch has none.

    Raises:
        TrainingError: no such optimiser, or it does not take these options.
    """
    kind = _optimiser_class(name)
    try:
        return kind(parameters, lr=learning_rate, **options)
    except TypeError as error:
        raise TrainingError(
            f"optimiser {name}: does not take the options {dict(options)} ({error}). "
            "Correct `optimiser_options`."
        ) from error


def _optimiser_class(name: str) -> Any:
    kind: Any = getattr(torch.optim, name, None)
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer:
        return kind
    try:
        eight_bit: Any = importlib.import_module("bitsandbytes.optim")
        return getattr(eight_bit, name)
    except (ImportError, AttributeError) as error:
        known = ", ".join(
            each
            for each, value in vars(torch.optim).items()
            if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
        )
        raise TrainingError(
            f"optimiser {name}: torch.optim has {known}; bitsandbytes (8-bit, such as AdamW8bit) "
            f"says: {error}. Choose one of these, or install bitsandbytes."
        ) from error


def learning_rate_factor(
    kind: LearningRateSchedule, step: int, warmup_steps: int, total_steps: int
) -> float:
    """The share of the full learning rate that step `step` (from 0) is taken with."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rate(optimiser: Any, learning_rate: float) -> None:
    """For every group; a schedule without a state of its own has nothing to save or to lose."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
