"""Batches out of processes that read ahead, and that end whatever happens."""

# torch's data loader is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import NestedAttentionError
from .errors import TrainingError
from .protocol import Batch


@dataclass(frozen=True)
class Failure:
    """What a reader hands on instead of a batch. An exception would arrive with its traceback."""

    message: str


def or_failure(make: Callable[[], Batch]) -> Batch | Failure:
    """The batch, or the sentence that says why there is none."""
    try:
        return make()
    except NestedAttentionError as error:
        return Failure(str(error))


def read_batches(
    dataset: Any, workers: int, turns: Iterable[Any] | None = None
) -> Generator[Batch, None, None]:
    """What `dataset` gives, read by `workers` processes; none are left when this is closed.

    Args:
        turns: the indices to ask a dataset for that is indexed; None for one that iterates.

    Raises:
        TrainingError: a reader has failed or was killed.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=turns,
        num_workers=workers,
        worker_init_fn=let_the_trainer_stop_first,
        # Else it would draw from the generator that the whole process shares.
        generator=torch.Generator(),
    )
    with _processes_of(loader) as batches:
        for batch in batches:
            if isinstance(batch, Failure):
                raise TrainingError(batch.message)
            yield batch


def let_the_trainer_stop_first(_worker: int) -> None:
    """Schedulers send SIGTERM to every process; readers go on until the trainer has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _processes_of(loader: Any) -> Generator[Iterator[Any], None, None]:
    """The loader's iterator. Its processes are killed in the end: they are deaf to SIGTERM, and
    Python would wait for them for ever."""
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    own = set(multiprocessing.active_children()) - others
    try:
        yield batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"A process that reads data has ended ({' '.join(str(error).split())[:300]}). Too "
            "little memory is a common cause: use fewer workers, or --resume to try again."
        ) from error
    finally:
        stop = getattr(batches, "_shutdown_workers", None)
        if stop is not None:
            stop()
        for process in own:
            process.kill()
            process.join()
