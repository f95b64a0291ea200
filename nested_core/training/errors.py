"""Errors of training that a user can cause."""

from __future__ import annotations

from ..errors import NestedAttentionError


class TrainingError(NestedAttentionError):
    """A configuration, data set, base model or checkpoint that cannot be trained with."""


class DivergedError(TrainingError):
    """Weights or a loss that are no numbers."""

    def __init__(self, step: int, finding: str) -> None:
        super().__init__(
            f"step {step}: {finding}. Resume from the last checkpoint with a lower learning_rate or, "
            "with fp16, with bf16."
        )
