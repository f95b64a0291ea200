"""Batches: what they hold, where a stream of them goes on, and the processes that read them ahead."""

# torch's data loader is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import NestedAttentionError
from ...shapes import Bool, Float
from ..base_model import Caption, PictureSize
from ..errors import TrainingError
from ..files import whole_number
from .examples import Example

POSITION = "The checkpoint's place in the data"


@dataclass(eq=False)
class Batch:
    """The samples of one process and micro-step.

    Attributes:
        pixels: in [-1, 1].
        reference_pixels: as the image encoder wants them.
        masks: 1 on the subject; 1 everywhere for samples without a mask.
        image_dropped: rows whose reference is withheld from the encoder.
        seeds: one per sample; everything random in its step follows from it.
        skipped: names and reasons of the examples that could not be read on the way here.
        resume: where this process's stream goes on behind this batch; JSON.
    """

    pixels: Float[Tensor, "batch 3 height width"]
    reference_pixels: Float[Tensor, "batch 3 size size"]
    captions: Sequence[Caption]
    masks: Float[Tensor, "batch 1 height width"]
    image_dropped: Bool[Tensor, " batch"]
    sizes: Sequence[PictureSize]
    seeds: Sequence[int]
    skipped: Mapping[str, str] = field(default_factory=lambda: {})
    resume: Any = None


@dataclass(frozen=True)
class Stripe:
    """The share of a stream of batches that one of several processes takes."""

    process: int = 0
    num_processes: int = 1


@runtime_checkable
class Data(Protocol):
    """An endless stream of batches in an order that seed and epoch decide."""

    def batches(self, resume: Any, stripe: Stripe) -> Iterator[Batch]:
        """This process's batches from the start, or from where a batch's `resume` points."""
        ...

    def some_captions(self, count: int) -> Sequence[Caption]:
        """The first captions, to learn from what the base model's text tokens look like."""
        ...


@runtime_checkable
class WholeData(Data, Protocol):
    """Data of which everything can be had once, beforehand."""

    def fingerprint(self) -> str:
        """Another text where captions or training pictures may be others."""
        ...

    def contents(self, stripe: Stripe) -> Generator[tuple[Caption, Tensor], None, None]:
        """Caption and training picture of each example that can be read, in this process's share."""
        ...


Content = tuple[Caption, Tensor]


def collate(samples: Sequence[tuple[Example, Mapping[str, str]]]) -> Batch:
    """Samples as one batch."""
    examples = [example for example, _ in samples]
    return Batch(
        pixels=torch.stack([each.pixels for each in examples]),
        reference_pixels=torch.stack([each.reference_pixels for each in examples]),
        captions=[each.caption for each in examples],
        masks=torch.stack([each.mask for each in examples]),
        image_dropped=torch.tensor([each.image_dropped for each in examples]),
        sizes=[each.size for each in examples],
        seeds=[each.seed for each in examples],
        skipped={name: reason for _, skipped in samples for name, reason in skipped.items()},
    )


def position_entry(resume: Any, name: str) -> int:
    """A number of a checkpoint's position in the data; TrainingError where there is none."""
    entry: Any = cast("dict[str, Any]", resume).get(name) if isinstance(resume, dict) else None
    return whole_number(f"{POSITION}: {name}", entry)


def batch_or_failure(make: Callable[[], Batch]) -> Batch | TrainingError:
    """The batch, or the error that says why there is none.

    A worker hands it on like a batch: an error that it raises would arrive with its traceback.
    """
    try:
        return make()
    except NestedAttentionError as error:
        return TrainingError(str(error))


def read_contents(
    dataset: Any, workers: int, sampler: Iterable[Any] | None = None
) -> Generator[Content, None, None]:
    """The same for datasets that give contents; None, for what cannot be read, is left out."""
    with closing(
        cast("Generator[Any, None, None]", read_batches(dataset, workers, sampler))
    ) as found:
        for content in found:
            if content is not None:
                yield content


def read_batches(
    dataset: Any, workers: int, sampler: Iterable[Any] | None = None
) -> Generator[Batch, None, None]:
    """What `dataset` gives, read by `workers` processes; none are left when this is closed.

    Args:
        sampler: the indices to ask a dataset for that is indexed; None for one that iterates.

    Raises:
        TrainingError: a worker has failed or was killed.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        worker_init_fn=_ignore_stop_signals,
        # Else it would draw from the generator that the whole process shares.
        generator=torch.Generator(),
    )
    with _worker_processes(loader) as batches:
        for batch in batches:
            if isinstance(batch, TrainingError):
                raise batch
            yield batch


def close_batches(batches: Iterator[Batch]) -> None:
    """Ends the processes that read the data, where it has any."""
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def _ignore_stop_signals(_worker: int) -> None:
    """Schedulers send SIGTERM to every process; workers go on until the trainer has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _worker_processes(loader: Any) -> Generator[Iterator[Any], None, None]:
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
