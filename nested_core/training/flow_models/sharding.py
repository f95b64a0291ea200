"""Frozen weights shared out among the processes: each holds a part, and borrows a block's while it runs."""

# torch's distributed parts are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from ..errors import TrainingError


def blocks_of(transformer: Any) -> list[nn.Module]:
    """The blocks that a transformer is a row of, by the classes that diffusers wants left whole."""
    names: set[str] = set(transformer._no_split_modules or ())
    modules: Iterator[nn.Module] = transformer.modules()
    return [module for module in modules if type(module).__name__ in names]


def shard_frozen(transformer: Any, device: torch.device) -> None:
    """Shards the weights over all processes (FSDP2), block by block, and moves them to the device.

    Raises:
        TrainingError: torch is too old for it.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise TrainingError(
            f"shard_base is set, but torch {torch.__version__} cannot share frozen weights out. "
            "Expected torch 2.6 or newer; or leave shard_base out."
        ) from error
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks_of(transformer):
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)
