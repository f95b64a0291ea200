"""Tensors for tests: random ones, and those of a file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Copies, so that the file can be written anew."""
    return load(path.read_bytes())
