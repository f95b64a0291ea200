"""Kernels: ways to compute what a site's subjects add, all of one signature and one result.

A test holds every kernel in `KERNELS` to the same reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from .attention import BoundToken, replacement_delta
from .joint import JointSoftmax
from .shapes import Float


class Kernel(Protocol):
    """The delta and A_s of queries, keys, values and bound tokens; see `replacement_delta`."""

    def __call__(
        self,
        query: Float[Tensor, "batch heads pixels head_dim"],
        text_key: Float[Tensor, "batch heads text_tokens head_dim"],
        text_value: Float[Tensor, "batch heads text_tokens head_dim"],
        bound_tokens: Sequence[BoundToken],
        seen: Float[Tensor, "batch bound_tokens pixels"] | None = None,
        separation: Float[Tensor, "batch 1 pixels 1"] | None = None,
        joint: JointSoftmax | None = None,
    ) -> Float[Tensor, "batch heads pixels head_dim"]: ...


KERNELS: Mapping[str, Kernel] = MappingProxyType({"pytorch": replacement_delta})
