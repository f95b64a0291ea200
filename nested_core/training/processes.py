"""The processes of a run: how they begin, their random generators, and how they end.

Nothing random in this trainer comes from the generators that a process shares, which are torch's,
Python's and numpy's; a base model or data of another kind may use them.
"""

# accelerate is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, is_tensorboard_available

from ..errors import NestedAttentionError
from .base_model import BaseModel
from .config import TrainingConfig
from .errors import TrainingError
from .files import short_repr

_LONGEST_WAIT = timedelta(days=1)

log = logging.getLogger(__name__)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """accelerate, as this run's settings say; its own configuration says the rest."""
    handlers: list[Any] = []
    if config.cache != "none":
        # One process may have to encode for hours after the others have done their share.
        handlers.append(InitProcessGroupKwargs(timeout=_LONGEST_WAIT))
    trackers = ["tensorboard"] if config.tensorboard and is_tensorboard_available() else None
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=cast("Any", trackers),
        project_dir=config.output,
        kwargs_handlers=handlers,
    )


def prepare_deepspeed(accelerator: Accelerator, config: TrainingConfig) -> bool:
    """Whether the run is DeepSpeed's, which then knows what it usually reads off a data loader.

    Raises:
        TrainingError: the settings ask for an average of weights that it hides.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return False
    settings = cast("dict[str, Any]", plugin.deepspeed_config)
    settings["train_micro_batch_size_per_gpu"] = config.batch_size
    if config.ema_decay:
        raise TrainingError(
            f"ema_decay is {config.ema_decay}: DeepSpeed keeps the weights where no average can be "
            "taken. Set ema_decay to 0, or use FSDP."
        )
    log.warning(
        "no checkpoints, the encoder file alone: DeepSpeed keeps its state in pickle files, which "
        "could run code. Use FSDP where the run must be able to go on."
    )
    return True


def shard_base(base_model: BaseModel) -> None:
    """Tells the base model that each process is to hold a part of its weights.

    Raises:
        TrainingError: it cannot be shared out.
    """
    shard: Callable[[], None] | None = getattr(base_model, "shard", None)
    if shard is None:
        raise TrainingError(
            f"shard_base is set, but the base model '{base_model.base}' cannot be shared out among "
            "processes: transformers can. Leave shard_base out."
        )
    shard()


def run_on_all_processes(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Runs `action` in every process. Where it fails in one, all raise that one's error.

    Else the others would wait, for ever, for one that has ended.
    """
    message = ""
    try:
        action()
    except (NestedAttentionError, OSError) as error:
        message = str(error)
    messages: list[str] = gather_object([message])
    for failure in filter(None, messages):
        raise TrainingError(failure)


def run_on_main_process(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Runs `action` in the main process alone. Where it fails, all raise its error."""
    run_on_all_processes(accelerator, action if accelerator.is_main_process else lambda: None)


class StopRequest:
    """Remembers the first signal that asks this process to stop; a second Ctrl-C stops at once.

    SIGTERM and Ctrl-C thus let the step end and the checkpoint be written.
    """

    def __init__(self) -> None:
        self.signal: int = 0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def generator_states(device: torch.device) -> dict[str, Any]:
    """As JSON."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, [int(each) for each in keys], *rest],
        **{
            name: bytes(module.get_rng_state().cpu().tolist()).hex()
            for name, module in _torch_generators(device).items()
        },
    }


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
        for name, module in _torch_generators(device).items():
            if name == "torch" or name in states:  # a run may go on on another kind of device
                state = list(bytes.fromhex(states[name]))
                module.set_rng_state(torch.tensor(state, dtype=torch.uint8))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TrainingError(
            f"{where}: holds no states of generators ({type(error).__name__}: {short_repr(str(error))}), "
            "expected those of Python, numpy and torch."
        ) from error


def _torch_generators(device: torch.device) -> dict[str, Any]:
    """The modules of torch that hold a generator, by the names under which they are saved."""
    own = None if device.type == "cpu" else getattr(torch, device.type, None)
    return {"torch": torch, "device": own} if hasattr(own, "get_rng_state") else {"torch": torch}
