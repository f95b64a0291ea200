"""Folders: order, dropout, unreadable files, messages."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from PIL import Image
from tiny_models import write_picture

from nested_core.training.data.batches import Stripe
from nested_core.training.data.examples import Preparation, draw_dropout, make_example
from nested_core.training.data.folder import FolderData, read_metadata
from nested_core.training.errors import TrainingError

NO_DROPOUT = {"drop_image": 0.0, "drop_text": 0.0, "drop_both": 0.0}
PLAIN = Preparation(resolution=32, reference_size=16, noun="person", **NO_DROPOUT)


def folder_data(folder, batch_size=2, how=PLAIN, seed=0, workers=0) -> FolderData:
    return FolderData(folder, read_metadata(folder), how, batch_size, seed, workers)


def take(data, count, resume=None, stripe=None):
    stream = data.batches(resume, stripe or Stripe())
    return [next(stream) for _ in range(count)]


def texts(batches) -> list[str]:
    return [caption.text for batch in batches for caption in batch.captions]


def test_every_example_once_per_epoch_in_another_order(data_folder) -> None:
    read = texts(take(folder_data(data_folder), 6))
    assert sorted(read[:6]) == sorted(read[6:]) == sorted(set(read))
    assert read[:6] != read[6:]
    assert read == texts(take(folder_data(data_folder), 6))
    assert read != texts(take(folder_data(data_folder, seed=1), 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_is_as_if_never_stopped(data_folder, workers) -> None:
    data = folder_data(data_folder, workers=workers)
    whole = take(data, 5)
    rest = take(data, 3, resume=whole[1].resume)
    assert texts(rest) == texts(whole[2:])
    for one, other in zip(rest, whole[2:], strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.seeds == other.seeds


def test_two_processes_see_what_one_sees(data_folder) -> None:
    alone = take(folder_data(data_folder, batch_size=4), 3)
    stripes = [Stripe(process, 2) for process in (0, 1)]
    first, second = (take(folder_data(data_folder), 3, stripe=stripe) for stripe in stripes)
    for whole, left, right in zip(alone, first, second, strict=True):
        assert whole.seeds == [*left.seeds, *right.seeds]
        assert torch.equal(whole.pixels, torch.cat([left.pixels, right.pixels]))
        assert left.resume == right.resume == whole.resume


def test_unreadable_files_are_named_and_skipped(data_folder) -> None:
    (data_folder / "1.png").write_bytes((data_folder / "1.png").read_bytes()[:60])
    (data_folder / "2.png").write_text("no picture")
    (data_folder / "3.png").unlink()
    batches = take(folder_data(data_folder), 6)
    skipped = {name: reason for batch in batches for name, reason in batch.skipped.items()}
    assert set(skipped) == {"1.png", "2.png", "3.png"}
    assert "FileNotFoundError" in skipped["3.png"]
    assert "UnidentifiedImageError" in skipped["2.png"]
    assert {text[-1] for text in texts(batches)} <= {"0", "4", "5"}
    assert all(len(batch.captions) == 2 for batch in batches)


def test_unreadable_files_move_no_other_sample(data_folder) -> None:
    before = take(folder_data(data_folder), 3)
    (data_folder / "2.png").write_text("no picture")
    after = take(folder_data(data_folder), 3)
    same = [a == b for a, b in zip(texts(before), texts(after), strict=True)]
    assert same.count(False) == 1


def test_a_folder_of_unreadable_files_is_an_error(data_folder) -> None:
    for path in data_folder.glob("?.png"):
        path.unlink()
    with pytest.raises(TrainingError, match=r"100 examples in a row cannot be read: .*png"):
        take(folder_data(data_folder), 1)


def test_dropout_rates() -> None:
    how = Preparation(32, 16, "person", drop_image=0.1, drop_text=0.2, drop_both=0.3)
    counts = Counter(draw_dropout((step + 0.5) / 1000, how) for step in range(1000))
    assert counts == {
        (True, True): 300,
        (True, False): 100,
        (False, True): 200,
        (False, False): 400,
    }


def test_the_stream_drops_at_these_rates(data_folder) -> None:
    how = Preparation(32, 16, "person", drop_image=0.25, drop_text=0.25, drop_both=0.25)
    (batch,) = take(folder_data(data_folder, batch_size=400, how=how), 1)
    no_text = [caption.text == "{subject}" for caption in batch.captions]
    counts = Counter(zip(batch.image_dropped.tolist(), no_text, strict=True))
    # 100 of each kind expected, with a standard deviation of 8.7.
    assert len(counts) == 4
    assert all(60 < count < 140 for count in counts.values())


def test_dropped_samples_say_so(data_folder) -> None:
    def only(**shares):
        how = Preparation(32, 16, "cat", **{**NO_DROPOUT, **shares})
        return take(folder_data(data_folder, how=how), 1)[0]

    assert only().image_dropped.tolist() == [False, False]
    assert only(drop_image=1.0).image_dropped.tolist() == [True, True]
    assert "photo" in only(drop_image=1.0).captions[0].text
    assert [caption.plain for caption in only(drop_text=1.0).captions] == ["cat", "cat"]
    assert only(drop_text=1.0).image_dropped.tolist() == [False, False]
    both = only(drop_both=1.0)
    assert both.image_dropped.tolist() == [True, True]
    assert both.captions[1].text == "{subject}"


def test_the_picture_is_its_own_reference_unless_others_are_given(data_folder) -> None:
    records = read_metadata(data_folder)

    def read(name):
        return (data_folder / name).read_bytes()

    def reference(record, seed=0):
        return make_example(record, read, PLAIN, seed).reference_pixels

    assert not torch.equal(reference(records[0]), reference(records[1]))
    seen = [reference(records[5], seed) for seed in range(8)]
    from_others = [reference(records[0]), reference(records[1])]
    assert all(any(torch.equal(a, b) for b in from_others) for a in seen)
    assert any(not torch.equal(a, seen[0]) for a in seen)


def test_the_mask_is_cut_as_the_picture_is(data_folder) -> None:
    picture = Image.new("RGB", (80, 72), "black")
    picture.paste((255, 255, 255), (10, 10, 50, 60))
    picture.save(data_folder / "5.png")
    record = read_metadata(data_folder)[5]
    example = make_example(record, lambda name: (data_folder / name).read_bytes(), PLAIN, 0)
    assert torch.allclose(example.mask, (example.pixels[:1] + 1) / 2, atol=0.02)
    assert 0.2 < float(example.mask.mean()) < 0.5


def test_sizes_tell_where_the_picture_was_cut(tmp_path) -> None:
    write_picture(tmp_path / "wide.png", 0, (200, 100))
    line = json.dumps({"file_name": "wide.png", "text": "{subject}"})
    (tmp_path / "metadata.jsonl").write_text(line)
    (size,) = take(folder_data(tmp_path, batch_size=1), 1)[0].sizes
    assert (size.original_height, size.original_width) == (100, 200)
    assert (size.crop_top, size.crop_left, size.height, size.width) == (0, 16, 32, 32)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", r"line 2: found \[1\], expected a JSON object"),
        ('{"text": "{subject}"}', "line 2: file_name is null, expected text"),
        ('{"file_name": "a.png"}', "line 2: text is null, expected text"),
        ('{"file_name": "a.png", "text": "a dog"}', "expected {subject} once"),
        ('{"file_name": "a", "text": "{subject} {subject}"}', "expected {subject} once"),
        ('{"file_name": "a", "text": "{subject}", "reference": 3}', "reference, mask or noun"),
    ],
)
def test_metadata_that_is_wrong_names_its_line(tmp_path, line, message) -> None:
    good = '{"file_name": "a.png", "text": "{subject}"}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(TrainingError, match=message):
        read_metadata(tmp_path)


def test_no_metadata_is_an_error(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"metadata.jsonl: cannot be read"):
        read_metadata(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(TrainingError, match="lists no example"):
        read_metadata(tmp_path)
