"""Errors of training that a user can cause."""

from __future__ import annotations

from ..errors import NestedAttentionError


class TrainingError(NestedAttentionError):
    """A configuration, data set, base model or checkpoint that cannot be trained with."""
