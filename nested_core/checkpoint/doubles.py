"""Tensors of one file that stand for the same thing: they must be equal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .shards import Source


class Comparison:
    """Differences between a source's tensors, two of them in memory at a time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[tuple[str, str], float] = {}

    def is_same(self, one: str, other: str) -> bool:
        """Whether the tensors of two keys have the same shape and values."""
        return self.difference(one, other) == 0.0

    def difference(self, one: str, other: str) -> float:
        """The largest absolute difference; infinite where the shapes differ.

        Raises:
            CheckpointError: not of a floating type that weights may have, NaN or infinite values.
        """
        if (one, other) not in self._known:
            self._known[one, other] = self._difference(one, other)
        return self._known[one, other]

    def _difference(self, one: str, other: str) -> float:
        specs = self._source.tensors
        if specs[one].shape != specs[other].shape:
            return math.inf
        if not specs[one].num_elements:
            return 0.0
        weights = self._source.read([one, other])
        return (weights[one].double() - weights[other].double()).abs().max().item()


def different_doubles(
    comparison: Comparison, names: Mapping[str, str], doubles: Mapping[str, list[str]]
) -> list[str]:
    """A sentence for each native name whose tensors are not equal."""
    return [
        f"Two tensors for {native}: {names[native]} and {key}; {_described(difference)}, expected one, or "
        "equal ones"
        for native, keys in doubles.items()
        for key in keys
        if (difference := comparison.difference(names[native], key)) > 0
    ]


def _described(difference: float) -> str:
    return (
        "of different shapes"
        if difference == math.inf
        else f"they differ by up to {difference:.3g}"
    )
