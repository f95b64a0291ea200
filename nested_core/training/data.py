"""A folder of pictures with a `metadata.jsonl`, as an endless stream in a fixed order.

Samples stand in *slots*, numbered from the start of training. Slot and seed decide which example a
sample is and everything random about it; processes take slots in turn. So a run that goes on at slot
n is the run that never stopped, and two processes see what one with the same global batch sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset, Sampler

from .errors import TrainingError
from .examples import Example, Preparation, Record, UnreadableError, make_example, seed_of
from .files import whole_number
from .protocol import SUBJECT, Batch, Caption, Stripe
from .readers import Failure, or_failure, read_batches

METADATA = "metadata.jsonl"
# After so many unreadable ones in a row the folder is at fault, not the files.
_MOST_ATTEMPTS = 100


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
        first = 0 if resume is None else place_in(resume, "slot")
        turns = _Turns(first, self.batch_size, stripe)
        with closing(read_batches(_Slots(self), self.workers, turns)) as batches:
            for turn, batch in enumerate(batches, start=1):
                batch.resume = {"slot": first + turn * self.batch_size * stripe.num_processes}
                yield batch

    def some_captions(self, count: int) -> Sequence[Caption]:
        return [
            Caption(record.text, record.noun or self.preparation.noun)
            for record in self.records[:count]
        ]

    def example(self, slot: int) -> tuple[Example, dict[str, str]]:
        """The slot's sample, and what was skipped on the way to it.

        An unreadable example gives its slot to another one, drawn from the slot's own number, so
        that no other slot changes.

        Raises:
            TrainingError: a hundred unreadable examples in a row.
        """
        skipped: dict[str, str] = {}
        index = _index_of(slot, len(self.records), self.seed)
        for attempt in range(_MOST_ATTEMPTS):
            record = self.records[index]
            try:
                seed = seed_of("example", self.seed, slot)
                return make_example(record, self._read, self.preparation, seed), skipped
            except UnreadableError as error:
                skipped[error.name] = error.reason
            index = seed_of("instead", self.seed, slot, attempt) % len(self.records)
        listed = "; ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:3])
        raise TrainingError(
            f"{self.folder}: {_MOST_ATTEMPTS} examples in a row cannot be read: {listed}. "
            f"Check that {METADATA} names pictures relative to this folder."
        )

    def _read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def _index_of(slot: int, num_records: int, seed: int) -> int:
    """Every record once per epoch, each epoch in an order of its own."""
    epoch, place = divmod(slot, num_records)
    return int(_epoch_order(num_records, seed, epoch)[place])


_last_order: tuple[tuple[int, int, int], torch.Tensor] | None = None


def _epoch_order(num_records: int, seed: int, epoch: int) -> torch.Tensor:
    global _last_order
    key = (num_records, seed, epoch)
    if _last_order is None or _last_order[0] != key:
        generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
        _last_order = (key, torch.randperm(num_records, generator=generator))
    return _last_order[1]


class _Slots(Dataset[Batch | Failure]):
    """Batches by the slots of their samples."""

    def __init__(self, data: FolderData) -> None:
        self.data = data

    def __getitem__(self, slots: list[int]) -> Batch | Failure:
        return or_failure(lambda: collate([self.data.example(slot) for slot in slots]))


class _Turns(Sampler[list[int]]):
    """Slots of this process's batches: processes take turns, batch by batch, for ever."""

    def __init__(self, first: int, batch_size: int, stripe: Stripe) -> None:
        self.start = first + stripe.process * batch_size
        self.batch_size, self.step = batch_size, batch_size * stripe.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        start = self.start
        while True:
            yield list(range(start, start + self.batch_size))
            start += self.step


def place_in(resume: Any, name: str) -> int:
    """A number of a checkpoint's place in the data; TrainingError where there is none."""
    found: Any = cast("dict[str, Any]", resume).get(name) if isinstance(resume, dict) else None
    return whole_number(f"The checkpoint's place in the data: {name}", found)


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


def record_from(where: str, entry: Any, image: str | None = None) -> Record:
    """A record from its JSON object; `image` where the file's name is known otherwise.

    Raises:
        TrainingError: an entry is missing or of the wrong type, or the text has no `{subject}`.
    """
    if not isinstance(entry, dict):
        raise TrainingError(f"{where}: found {line_start(entry)}, expected a JSON object.")
    fields = cast("dict[str, Any]", entry)
    references: Any = fields.get("reference") or []
    values = {"file_name": image or fields.get("file_name"), "text": fields.get("text")}
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise TrainingError(f"{where}: {name} is {line_start(value)}, expected text.")
    if values["text"].count(SUBJECT) != 1:  # type: ignore[union-attr]
        raise TrainingError(
            f"{where}: the text is {line_start(values['text'])}, expected {SUBJECT} once, where the "
            "noun goes: the word that the subject is bound to."
        )
    listed: Any = [references] if isinstance(references, str) else references
    optional = [each for each in (fields.get("mask"), fields.get("noun")) if each is not None]
    if not isinstance(listed, list) or not _are_text([*cast("list[Any]", listed), *optional]):
        raise TrainingError(
            f"{where}: reference, mask or noun is no text. Expected file names; `reference` may be "
            "a list of them."
        )
    return Record(
        image=cast("str", values["file_name"]),
        text=cast("str", values["text"]),
        references=tuple(cast("list[str]", listed)),
        mask=fields.get("mask"),
        noun=fields.get("noun"),
    )


def _are_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def line_start(value: Any) -> str:
    """The beginning of a value as JSON, for messages."""
    return json.dumps(value)[:80]
