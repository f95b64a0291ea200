"""The states of the generators that a process shares: torch's, Python's and numpy's.

Nothing random in this trainer comes from them; a base model or data of another kind may use them.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from .errors import TrainingError
from .files import shown


def seed_generators(seed: int, process: int) -> None:
    """The same for two runs with the same settings, another for each process."""
    number = (seed + process) % 2**32
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)  # pyright: ignore[reportUnknownMemberType]


def generator_states(device: torch.device) -> dict[str, Any]:
    """As JSON."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    torchs: Any = torch.get_rng_state()
    states = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, [int(each) for each in keys], *rest],
        "torch": bytes(torchs.tolist()).hex(),
    }
    own = _of_device(device)
    if own is not None:
        states["device"] = bytes(own.get_rng_state().cpu().tolist()).hex()
    return states


def restore_generators(where: str, states: dict[str, Any], device: torch.device) -> None:
    """Takes back what `generator_states` gave.

    Raises:
        TrainingError: it is something else.
    """
    try:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(_bytes(states["torch"]))
        own = _of_device(device)
        if own is not None and "device" in states:
            own.set_rng_state(_bytes(states["device"]))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TrainingError(
            f"{where}: holds no states of generators ({type(error).__name__}: {shown(str(error))}), "
            "expected those of Python, numpy and torch."
        ) from error


def _of_device(device: torch.device) -> Any:
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    return module if hasattr(module, "get_rng_state") else None


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
