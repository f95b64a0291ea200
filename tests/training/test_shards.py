"""Webdataset shards: order, resuming, unreadable samples, messages."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from test_folder import PLAIN, take, texts
from tiny_models import write_picture

pytest.importorskip("webdataset")
from nested_core.training.data.batches import Data, Stripe, WholeData
from nested_core.training.data.shards import ShardData, expand_shards
from nested_core.training.errors import TrainingError


@pytest.fixture
def shard_pattern(tmp_path) -> str:
    """Four shards of five samples; sample 7 is broken, sample 8 has a reference and a mask."""
    write_picture(tmp_path / "picture.png", 0)
    good = (tmp_path / "picture.png").read_bytes()
    for shard in range(4):
        with tarfile.open(tmp_path / f"x-{shard}.tar", "w") as tar:
            for number in range(5 * shard, 5 * shard + 5):
                text = json.dumps({"text": f"{{subject}} {number}"}).encode()
                _add(tar, f"{number:03d}.json", text)
                _add(tar, f"{number:03d}.png", b"no picture" if number == 7 else good)
                if number == 8:
                    write_picture(tmp_path / "other.png", 9)
                    _add(tar, "008.reference.png", (tmp_path / "other.png").read_bytes())
                    _add(tar, "008.mask.png", good)
    return str(tmp_path / "x-{0..3}.tar")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shards(pattern: str, workers: int = 0, batch_size: int = 2, buffer: int = 4) -> ShardData:
    return ShardData(expand_shards(pattern), PLAIN, batch_size, 3, workers, buffer)


def test_shards_are_data(shard_pattern) -> None:
    data = shards(shard_pattern)
    assert isinstance(data, Data)
    assert [caption.text for caption in data.some_captions(3)] == [
        "{subject} 0",
        "{subject} 1",
        "{subject} 2",
    ]


def test_an_epoch_has_every_readable_sample_once(shard_pattern) -> None:
    batches = take(shards(shard_pattern, batch_size=1), 38)
    numbers = [int(text.split()[1]) for text in texts(batches)]
    expected = [number for number in range(20) if number != 7]
    assert sorted(numbers[:19]) == sorted(numbers[19:]) == expected
    assert numbers[:19] != numbers[19:]
    assert numbers[:19] != expected
    skipped = {name for batch in batches for name in batch.skipped}
    assert [name.rpartition("/")[2] for name in skipped] == ["007"]


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_in_the_shards_can_be_had_once(shard_pattern, workers) -> None:
    data = shards(shard_pattern, workers)
    assert isinstance(data, WholeData)
    shares = [list(data.contents(Stripe(process, 2))) for process in (0, 1)]
    numbers = [[int(caption.text.split()[1]) for caption, _ in share] for share in shares]
    assert sorted(len(each) for each in numbers) == [9, 10]
    assert sorted(numbers[0] + numbers[1]) == [number for number in range(20) if number != 7]
    batch = next(data.batches(None, Stripe()))
    pictures = {caption.text: pixels for share in shares for caption, pixels in share}
    assert torch.equal(batch.pixels[0], pictures[batch.captions[0].text])


def test_shards_that_have_changed_are_other_ones(shard_pattern, tmp_path) -> None:
    before = shards(shard_pattern).fingerprint()
    assert shards(shard_pattern).fingerprint() == before
    with tarfile.open(tmp_path / "x-1.tar", "a") as tar:
        _add(tar, "more.txt", b"more")
    assert shards(shard_pattern).fingerprint() != before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 9, 13])
def test_going_on_is_as_if_never_stopped(shard_pattern, workers, stop) -> None:
    data = shards(shard_pattern, workers)
    whole = take(data, 16)
    resume = json.loads(json.dumps(whole[stop - 1].resume))
    rest = take(data, 16 - stop, resume=resume)
    assert texts(rest) == texts(whole[stop:])
    assert [batch.seeds for batch in rest] == [batch.seeds for batch in whole[stop:]]
    assert [batch.resume for batch in rest] == [batch.resume for batch in whole[stop:]]


def test_processes_share_the_shards(shard_pattern) -> None:
    both = [take(shards(shard_pattern, batch_size=1), 9, stripe=Stripe(p, 2)) for p in (0, 1)]
    first, second = (set(texts(batches)) for batches in both)
    assert first.isdisjoint(second)


def test_references_and_masks_are_found(shard_pattern) -> None:
    batches = take(shards(shard_pattern, batch_size=1), 19)
    by_text = dict(zip(texts(batches), batches, strict=True))
    special, plain = by_text["{subject} 8"], by_text["{subject} 9"]
    assert not torch.equal(special.reference_pixels, plain.reference_pixels)
    assert float(plain.masks.mean()) == 1.0
    assert 0 < float(special.masks.mean()) < 1


def test_a_shard_that_is_missing_is_named(shard_pattern, tmp_path, caplog) -> None:
    (tmp_path / "x-2.tar").unlink()
    assert len(take(shards(shard_pattern, batch_size=1), 14)) == 14
    assert "x-2.tar" in caplog.text


def test_every_reader_needs_a_shard(shard_pattern) -> None:
    with pytest.raises(TrainingError, match="4 shards for 3 processes with 2 readers each"):
        next(shards(shard_pattern, workers=2).batches(None, Stripe(0, 3)))


def test_the_readers_must_be_as_many_as_before(shard_pattern) -> None:
    resume = take(shards(shard_pattern, workers=2), 1)[0].resume
    with pytest.raises(TrainingError, match="workers was 2, is 0"):
        take(shards(shard_pattern), 1, resume=resume)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"turn": -1}, "turn is -1, expected a whole number"),
        ({"workers": None}, "workers is None"),
        ({"readers": None}, "readers is None, expected places of 1 readers"),
        ({"readers": {"7": {}}}, "readers is {'7': {}}"),
        ({"readers": {"0": 3}}, "epoch is None"),
        ({"readers": {"0": {"epoch": 0, "taken": "1"}}}, "taken is '1'"),
        ({"readers": {"0": {"epoch": 0, "taken": 10**15}}}, "but its shards now hold 20"),
    ],
)
def test_a_place_in_the_shards_that_is_none_is_named(shard_pattern, changes, message) -> None:
    resume = take(shards(shard_pattern), 1)[0].resume
    with pytest.raises(TrainingError, match=f"The checkpoint's place in the data: .*{message}"):
        take(shards(shard_pattern), 1, resume={**resume, **changes})


def test_what_is_no_shard_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a folder nor shards"):
        expand_shards(str(tmp_path / "nothing"))
