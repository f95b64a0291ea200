"""Webdataset shards as an endless stream in a fixed order: data beyond one disk.

A sample of a shard is `KEY.json` (`text` with `{subject}`, optionally `noun`), one picture `KEY.jpg`
(or png, webp), optionally `KEY.reference.jpg`, `KEY.reference.1.jpg`, ... and `KEY.mask.png`.

Each reader (one per process and worker) has shards of its own, in an order that seed and epoch
decide, mixed by a buffer whose draws they decide too. To go on, a reader reads its current epoch
again from the start, without decoding, up to where it was.
"""

# webdataset is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import logging
import random
import tarfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..base_model import Caption
from ..errors import TrainingError
from ..files import short_repr
from .batches import (
    POSITION,
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

_PICTURE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

Sample = Mapping[str, Any]


def expand_shards(spec: str) -> list[str]:
    """The shards that `x/{000..099}.tar` (and lists of such, separated by `::`) stands for."""
    shards = list(webdataset.shardlists.expand_urls(spec))
    if not shards or not all(".tar" in shard for shard in shards):
        raise TrainingError(
            f"data is '{spec}': neither a folder nor shards. Expected a folder with metadata.jsonl, "
            "or .tar files such as data/{000..099}.tar."
        )
    return shards


@dataclass(frozen=True, eq=False)
class ShardData:
    """The `Data` of a list of shards."""

    shards: Sequence[str]
    preparation: Preparation
    batch_size: int
    seed: int = 0
    workers: int = 0
    shuffle_buffer: int = 1000

    def batches(self, resume: Any, stripe: Stripe) -> Iterator[Batch]:
        """This process's batches, its readers in turn.

        Raises:
            TrainingError: fewer shards than readers, or another number of readers than before.
        """
        readers = max(1, self.workers)
        if len(self.shards) < readers * stripe.num_processes:
            raise TrainingError(
                f"{len(self.shards)} shards for {stripe.num_processes} processes with {readers} "
                "readers each: every reader needs a shard. Use fewer workers or make more shards."
            )
        turn, positions = 0, {}
        if resume is not None:
            turn = position_entry(resume, "turn")
            positions = self._positions(resume, readers)
        # The loader begins with its first worker: it takes the part of whoever is next.
        dataset = _ShardDataset(self, stripe, positions, turn)
        with closing(read_batches(dataset, self.workers)) as batches:
            for batch in batches:
                turn += 1
                positions = {**positions, **batch.resume}
                batch.resume = {"turn": turn, "workers": self.workers, "readers": positions}
                yield batch

    def _positions(self, resume: dict[str, Any], readers: int) -> dict[str, Any]:
        """Each reader's epoch and how much of it was taken."""
        if position_entry(resume, "workers") != self.workers:
            raise TrainingError(
                f"workers was {resume['workers']}, is {self.workers}: each reader has a place of its "
                "own in the shards. Set workers back."
            )
        positions: Any = resume.get("readers")
        if not isinstance(positions, dict) or not set(positions) <= set(map(str, range(readers))):
            raise TrainingError(
                f"{POSITION}: readers is {short_repr(positions)}, expected places of {readers} readers."
            )
        return {
            reader: {name: position_entry(position, name) for name in ("epoch", "taken")}
            for reader, position in cast("dict[str, Any]", positions).items()
        }

    def fingerprint(self) -> str:
        """See `WholeData`: local shards' sizes and times. Others are taken to stay what they are."""
        stats = [Path(shard).stat() if Path(shard).is_file() else None for shard in self.shards]
        states = [None if stat is None else (stat.st_size, stat.st_mtime_ns) for stat in stats]
        return json.dumps([self.preparation.resolution, self.preparation.noun, self.shards, states])

    def contents(self, stripe: Stripe) -> Generator[Content, None, None]:
        """See `WholeData`."""
        yield from read_contents(_ShardContents(self, stripe), self.workers)

    def some_captions(self, count: int) -> Sequence[Caption]:
        samples = islice(_samples(self.shards), count)
        return [self.preparation.caption(_record(sample)) for sample in samples]


class _ShardDataset(IterableDataset[Batch | TrainingError]):
    """Runs in each worker as that worker's reader."""

    def __init__(
        self, data: ShardData, stripe: Stripe, positions: Mapping[str, Any], turn: int
    ) -> None:
        self.data, self.stripe, self.positions, self.turn = data, stripe, positions, turn

    def __iter__(self) -> Iterator[Batch | TrainingError]:
        worker = get_worker_info()
        readers = 1 if worker is None else worker.num_workers
        reader = (self.turn + (0 if worker is None else worker.id)) % readers
        number = self.stripe.process * readers + reader
        total = self.stripe.num_processes * readers
        position = self.positions.get(str(reader), {"epoch": 0, "taken": 0})
        stream = _ReaderStream(self.data, number, total, position["epoch"], position["taken"])

        def next_batch() -> Batch:
            batch = collate([stream.next_example() for _ in range(self.data.batch_size)])
            batch.resume = {str(reader): {"epoch": stream.epoch, "taken": stream.taken}}
            return batch

        while True:
            yield batch_or_failure(next_batch)


class _ShardContents(IterableDataset[Content]):
    """Runs in each worker, on the shards that are its share."""

    def __init__(self, data: ShardData, stripe: Stripe) -> None:
        self.data, self.stripe = data, stripe

    def __iter__(self) -> Iterator[Content]:
        worker = get_worker_info()
        readers, reader = (1, 0) if worker is None else (worker.num_workers, worker.id)
        number = self.stripe.process * readers + reader
        preparation = self.data.preparation
        for sample in _samples(self.data.shards[number :: self.stripe.num_processes * readers]):
            try:
                record = _record(sample)
                pixels = training_picture(record, lambda name, s=sample: s[name], preparation)
                yield preparation.caption(record), pixels
            except (UnreadableError, TrainingError):
                continue


class _ReaderStream:
    """One reader's samples, epoch after epoch; `taken` counts the current epoch's."""

    def __init__(self, data: ShardData, number: int, total: int, epoch: int, taken: int) -> None:
        self.data, self.number, self.total = data, number, total
        self.epoch, self.taken = epoch, taken
        self._samples = self._epoch_samples()
        self._num_to_skip = taken

    def next_example(self) -> tuple[Example, dict[str, str]]:
        skipped: dict[str, str] = {}
        for _ in range(MAX_UNREADABLE):
            sample = self._next_sample()
            seed = seed_of("shards", self.data.seed, self.number, self.epoch, self.taken)
            try:
                record = _record(sample)
                example = make_example(
                    record, lambda name, s=sample: s[name], self.data.preparation, seed
                )
                return example, skipped
            except (UnreadableError, TrainingError) as error:
                name = f"{sample['__url__']}/{sample['__key__']}"
                skipped[name] = getattr(error, "reason", str(error))
        raise TrainingError(
            f"{MAX_UNREADABLE} samples in a row cannot be read: {list(skipped.items())[:3]}. Expected "
            "KEY.json and KEY.jpg (png, webp) for each KEY."
        )

    def _next_sample(self) -> Sample:
        for number in range(self._num_to_skip):
            if next(self._samples, None) is None:
                raise TrainingError(
                    f"{POSITION}: {self._num_to_skip} samples of epoch "
                    f"{self.epoch} were taken, but its shards now hold {number}. Give the run the "
                    "shards that it began with."
                )
        self._num_to_skip = 0
        for sample in self._samples:
            self.taken += 1
            return sample
        if self.taken == 0:
            raise TrainingError(
                f"{self.data.shards[0]} and the others: a reader found no sample in its shards of "
                "this epoch. Check that they can be read."
            )
        self.epoch, self.taken = self.epoch + 1, 0
        self._samples = self._epoch_samples()
        return self._next_sample()

    def _epoch_samples(self) -> Iterator[Sample]:
        shards = list(self.data.shards)
        random.Random(seed_of("shard order", self.data.seed, self.epoch)).shuffle(shards)
        buffer_seed = seed_of("buffer", self.data.seed, self.epoch, self.number)
        size = max(1, self.data.shuffle_buffer)
        mix: Any = webdataset.filters.shuffle(size, initial=size, rng=random.Random(buffer_seed))
        return iter(mix(_samples(shards[self.number :: self.total])))


def _samples(shards: Sequence[str]) -> Iterator[Sample]:
    """Samples as bytes by extension; a shard that cannot be read (on) is named and left."""
    for shard in shards:
        try:
            with gopen(shard) as stream:
                source = iter([{"url": shard, "stream": stream}])
                files = tar_file_expander(source, handler=_leave_shard)
                yield from group_by_keys(files, handler=_leave_shard)
        except (OSError, ValueError, tarfile.TarError) as error:
            _leave_shard(error)


def _leave_shard(error: Exception) -> bool:
    logging.warning("A shard was left: %s", error)
    return True


def _record(sample: Sample) -> Record:
    where = f"{sample['__url__']}, {sample['__key__']}"
    picture = next((name for name in _PICTURE_EXTENSIONS if name in sample), None)
    if picture is None or "json" not in sample:
        raise TrainingError(f"{where}: has {sorted(sample)}, expected json and a picture.")
    try:
        entry: Any = json.loads(sample["json"])
    except ValueError as error:
        raise TrainingError(f"{where}: its json is none ({error}).") from error
    references = [name for name in sorted(sample) if name.startswith("reference.")]
    mask = next((name for name in sample if name.startswith("mask.")), None)
    if isinstance(entry, dict):
        entry = {**cast("dict[str, Any]", entry), "reference": references, "mask": mask}
    return record_from(where, entry, image=picture)
