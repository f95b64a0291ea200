"""A folder of pictures with a `metadata.jsonl`, as an endless stream in a fixed order.

Samples stand in *slots*, numbered from the start of training. Slot and seed decide which example a
sample is and everything random about it; processes take slots in turn. So a run that goes on at slot
n is the run that never stopped, and two processes see what one with the same global batch sees.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ..base_model import Caption
from ..errors import TrainingError
from .batches import (
    Batch,
    Content,
    Stripe,
    batch_or_failure,
    collate,
    position_entry,
    read_batches,
    read_contents,
)
from .examples import (
    MAX_UNREADABLE,
    Example,
    Preparation,
    Record,
    UnreadableError,
    make_example,
    record_from,
    seed_of,
    training_picture,
)

METADATA = "metadata.jsonl"


@dataclass(frozen=True, eq=False)
class FolderData:
    """The `Data` of a folder.

    Attributes:
        batch_size: samples per process and micro-step.
        workers: processes that read and decode, for each training process.
    """

    folder: Path
    records: Sequence[Record]
    preparation: Preparation
    batch_size: int
    seed: int = 0
    workers: int = 0

    def batches(self, resume: Any, stripe: Stripe) -> Iterator[Batch]:
        """Batches from slot `resume["slot"]` on; the number of processes may have changed."""
        first = 0 if resume is None else position_entry(resume, "slot")
        # Processes take turns, batch by batch, for ever.
        step = self.batch_size * stripe.num_processes
        starts = count(first + stripe.process * self.batch_size, step)
        slots = (range(start, start + self.batch_size) for start in starts)
        with closing(read_batches(self, self.workers, slots)) as batches:
            for number, batch in enumerate(batches, start=1):
                batch.resume = {"slot": first + number * step}
                yield batch

    def __getitem__(self, slots: Iterable[int]) -> Batch | TrainingError:
        """The batch of these slots, as torch's data loader asks for it."""
        return batch_or_failure(lambda: collate([self.example(slot) for slot in slots]))

    def some_captions(self, count: int) -> Sequence[Caption]:
        return [self.preparation.caption(record) for record in self.records[:count]]

    def example(self, slot: int) -> tuple[Example, dict[str, str]]:
        """The slot's sample, and what was skipped on the way to it.

        An unreadable example gives its slot to another one, drawn from the slot's own number, so
        that no other slot changes.

        Raises:
            TrainingError: a hundred unreadable examples in a row.
        """
        skipped: dict[str, str] = {}
        epoch, place = divmod(slot, len(self.records))
        index = int(_epoch_permutation(len(self.records), self.seed, epoch)[place])
        for attempt in range(MAX_UNREADABLE):
            record = self.records[index]
            try:
                seed = seed_of("example", self.seed, slot)
                return make_example(record, self.read, self.preparation, seed), skipped
            except UnreadableError as error:
                skipped[error.name] = error.reason
            index = seed_of("instead", self.seed, slot, attempt) % len(self.records)
        listed = "; ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:3])
        raise TrainingError(
            f"{self.folder}: {MAX_UNREADABLE} examples in a row cannot be read: {listed}. "
            f"Check that {METADATA} names pictures relative to this folder."
        )

    def fingerprint(self) -> str:
        """See `WholeData`: all files' sizes and times."""
        files = [
            (record.image, record.text, self.preparation.caption(record).noun, self._state(record))
            for record in self.records
        ]
        return json.dumps([self.preparation.resolution, files])

    def _state(self, record: Record) -> tuple[int, int] | None:
        try:
            stat = (self.folder / record.image).stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def contents(self, stripe: Stripe) -> Generator[Content, None, None]:
        """See `WholeData`."""
        mine = range(stripe.process, len(self.records), stripe.num_processes)
        yield from read_contents(_Contents(self), self.workers, mine)

    def read(self, name: str) -> bytes:
        """A file of the folder."""
        return (self.folder / name).read_bytes()


@dataclass(frozen=True, eq=False)
class _Contents:
    """Contents by the number of their record, as torch's data loader asks for them."""

    data: FolderData

    def __getitem__(self, number: int) -> Content | None:
        record, preparation = self.data.records[number], self.data.preparation
        try:
            return preparation.caption(record), training_picture(
                record, self.data.read, preparation
            )
        except UnreadableError:
            return None


@lru_cache(maxsize=1)
def _epoch_permutation(num_records: int, seed: int, epoch: int) -> torch.Tensor:
    """Every record once per epoch, each epoch in an order of its own."""
    generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
    return torch.randperm(num_records, generator=generator)


def read_metadata(folder: Path) -> list[Record]:
    """The examples that `metadata.jsonl` lists, one JSON object a line.

    Raises:
        TrainingError: no such file, a line that is no example, or no line at all; the line is named.
    """
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path}: cannot be read ({error}). Expected a text file with one JSON object a line, "
            'such as {"file_name": "1.jpg", "text": "a photo of {subject}"}.'
        ) from error
    records = [
        _record(f"{path.name}, line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not records:
        raise TrainingError(f"{path}: lists no example. Add one JSON object a line.")
    return records


def _record(where: str, line: str) -> Record:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise TrainingError(f"{where}: is not JSON ({error}). Write one object a line.") from error
    return record_from(where, entry)
