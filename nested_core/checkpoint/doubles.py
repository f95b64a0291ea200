"""Tensors of one file that stand for the same thing: they must be equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

from .shards import Source

Difference = Callable[[str, str], float]


def differences(source: Source) -> Difference:
    """The largest absolute difference of two keys' tensors; infinite where the shapes differ.

    Each pair is read once, and no more than one pair is in memory. Where a tensor is not of a
    floating type that weights may have, or holds NaN or infinite values, it raises CheckpointError.
    """

    @cache
    def difference(one: str, other: str) -> float:
        if source.tensors[one].shape != source.tensors[other].shape:
            return math.inf
        if not source.tensors[one].num_elements:
            return 0.0
        weights = source.read([one, other])
        return (weights[one].double() - weights[other].double()).abs().max().item()

    return difference


def different_doubles(
    difference_of: Difference, names: Mapping[str, str], doubles: Mapping[str, list[str]]
) -> list[str]:
    """A sentence for each native name whose tensors are not equal."""
    return [
        f"Two tensors for {native}: {names[native]} and {key}; {_described(difference)}, expected one, or "
        "equal ones"
        for native, keys in doubles.items()
        for key in keys
        if (difference := difference_of(names[native], key)) > 0
    ]


def _described(difference: float) -> str:
    return (
        "of different shapes"
        if difference == math.inf
        else f"they differ by up to {difference:.3g}"
    )
