"""Files that are not what they should be: one clear error each, and never anything else."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nested_core.checkpoint import describe, detect, load_encoder, load_subject, save_encoder
from nested_core.checkpoint.safetensors_file import read_header
from nested_core.errors import CheckpointError


@pytest.fixture(scope="session")
def intact(tmp_path_factory: Any, make_encoder: Any) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "face.safetensors"
    save_encoder(make_encoder(), path)
    return path.read_bytes()


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def with_header(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with its header changed in place, or replaced by the bytes `change` returns."""
    end = header_end(content)
    entries = json.loads(content[8:end])
    changed = change(entries)
    text = changed if isinstance(changed, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def changed_entry(name: str, **fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: with_header(content, lambda entries: entries[name].update(fields))


def every_reader(path: Path, encoder: Any) -> list[Callable[[], Any]]:
    return [
        lambda: detect(path),
        lambda: load_encoder(path),
        lambda: load_subject(path, encoder),
        lambda: list(describe(path)),
    ]


LATENTS = "resampler.latents"
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", r"the file is empty\. Download or copy it again"),
    "seven bytes": (lambda c: c[:7], r"is not a safetensors file \(it begins with "),
    "eight bytes": (lambda c: c[:8], r"is not a safetensors file \(it begins with "),
    "cut off in the header": (
        lambda c: c[:200],
        r"is cut off inside its header \(200 bytes, the header ends at [\d,]+\)",
    ),
    "cut off behind the header": (
        lambda c: c[: header_end(c)],
        r"is cut off \(0 of [\d,]+ bytes of tensors\)",
    ),
    "cut off in the data": (lambda c: c[:-5], r"is cut off \([\d,]+ of [\d,]+ bytes of tensors\)"),
    "surplus bytes": (lambda c: c + b"xyz", "has 3 bytes behind its last tensor"),
    "header beyond the limit": (
        lambda c: (100_000_001).to_bytes(8, "little") + c[8:],
        r"claims a header of 100,000,001 bytes, expected at most 100,000,000",
    ),
    "header beyond all bounds": (
        lambda c: b"\xff" * 8 + c[8:],
        r"claims a header of 18,446,744,073,709,551,615 bytes",
    ),
    "header longer than the file": (
        lambda c: (90_000_000).to_bytes(8, "little") + c[8:],
        r"is cut off inside its header",
    ),
    "header not JSON": (lambda c: with_header(c, lambda _: b"{nothing}"), "header is not JSON"),
    "header not text": (lambda c: with_header(c, lambda _: b'{"\xff": 1}'), "header is not JSON"),
    "header nested without end": (
        lambda c: with_header(c, lambda _: b'{"a":' * 100_000),
        "header is not JSON",
    ),
    "a name twice": (
        lambda c: with_header(c, lambda _: b'{"a": 1, "a": 1}'),
        r"header is not JSON \(a name occurs twice\)",
    ),
    "metadata not texts": (
        lambda c: with_header(c, lambda entries: entries["__metadata__"].update(format=3)),
        "'__metadata__' is not a table of texts",
    ),
    "metadata no table": (
        lambda c: with_header(c, lambda entries: entries.update(__metadata__=[])),
        "'__metadata__' is not a table of texts",
    ),
    "entry no table": (
        lambda c: with_header(c, lambda entries: entries.update({LATENTS: None})),
        "entry of 'resampler.latents' is not a dtype, shape and offsets",
    ),
    "negative size": (changed_entry(LATENTS, shape=[-1, 4, 16]), "is not a dtype, shape and"),
    "fractional size": (changed_entry(LATENTS, shape=[1.0, 4, 16]), "is not a dtype, shape and"),
    "three offsets": (changed_entry(LATENTS, data_offsets=[0, 1, 2]), "is not a dtype, shape and"),
    "no dtype": (changed_entry(LATENTS, dtype=None), "is not a dtype, shape and offsets"),
    "size and bytes disagree": (
        changed_entry(LATENTS, shape=[1, 4, 17]),
        r"'resampler.latents' has 256 bytes, expected 272 for F32 \[1, 4, 17\]",
    ),
    "offsets backwards": (changed_entry(LATENTS, data_offsets=[256, 0]), "has -256 bytes"),
    "a gap": (
        lambda c: with_header(
            c + b"1234",
            lambda entries: entries.update(
                {LATENTS: {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}
            ),
        ),
        "overlap or leave gaps at byte",
    ),
    "a header longer than any encoder's": (
        lambda c: with_header(c, lambda entries: json.dumps(entries).encode().ljust(2**24 + 1)),
        "has a header of 16,777,217 bytes, expected at most 16,777,216",
    ),
    "more tensors than any encoder's": (
        lambda c: with_header(
            c, lambda entries: entries.update(dict.fromkeys(map(str, range(32_768))))
        ),
        r"holds 32,805 tensors, expected at most 32,768",
    ),
    "a name longer than any": (
        lambda c: with_header(c, lambda entries: entries.update({"x" * 501: None})),
        r"the name 'x+\.\.\. \(501 characters\)' is longer than 500",
    ),
    "nine dimensions": (
        changed_entry(LATENTS, shape=[1] * 8 + [64]),
        "'resampler.latents' has 9 dimensions, expected at most 8",
    ),
    "sizes that overflow beside a zero": (
        changed_entry(LATENTS, shape=[0, 2**40, 2**40], data_offsets=[0, 0]),
        r"has the shape \[0, \d+, \d+\], expected at most 281,474,976,710,656 elements",
    ),
    "sizes of another program's type": (
        changed_entry(LATENTS, dtype="F4", shape=[2**49]),
        r"has the shape \[\d+\], expected at most 281,474,976,710,656 elements",
    ),
    "many texts of metadata": (
        lambda c: with_header(
            c,
            lambda entries: entries["__metadata__"].update(dict.fromkeys(map(str, range(998)), "")),
        ),
        "has 1,001 texts of .* as metadata, expected at most 1,000",
    ),
    "long texts of metadata": (
        lambda c: with_header(c, lambda entries: entries["__metadata__"].update(a="x" * 2**23)),
        r"has 4 texts of 8,\d+,\d+ characters as metadata, expected at most 1,000 of 8,388,608",
    ),
    "half a surrogate pair": (
        lambda c: with_header(c, lambda _: b'{"\\ud800": 1}'),
        r"header is not JSON \('utf-8' codec can't encode",
    ),
    "a web page": (lambda _: b"<!DOCTYPE html><html>", r"a web page .*\(a login may be needed\)"),
    "a Git LFS pointer": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d",
        "is a Git LFS pointer .* `git lfs pull`",
    ),
    "a GGUF file": (lambda _: b"GGUF\x03\x00\x00\x00" + b"\x00" * 50, "is a GGUF file"),
    "another file": (
        lambda _: b"\x89PNG\r\n\x1a\n" + b"\x00" * 50,
        r"is not a safetensors file \(it begins with 89 50 4e 47 0d 0a 1a 0a 00, expected",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_damage(
    tmp_path: Path, intact: bytes, make_encoder: Any, damage: str
):
    change, message = DAMAGES[damage]
    path = tmp_path / "face.safetensors"
    path.write_bytes(change(intact))
    for read in every_reader(path, make_encoder()):
        with pytest.raises(CheckpointError, match=rf"^face\.safetensors: .*{message}"):
            read()


def test_an_undamaged_file_passes_the_same_readers(
    tmp_path: Path, intact: bytes, make_encoder: Any
):
    path = tmp_path / "face.safetensors"
    path.write_bytes(with_header(intact, lambda entries: None))
    assert detect(path) == "native-encoder"
    assert torch.equal(load_encoder(path).resampler.latents, make_encoder().resampler.latents)


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path, make_encoder: Any):
    folder = re.escape(str(tmp_path))
    for read in every_reader(tmp_path / "gone.safetensors", make_encoder()):
        with pytest.raises(CheckpointError, match=rf"^gone\.\w+: no such file in {folder}\."):
            read()


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is a folder or a device"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["face\x00", "face\ud800", "x" * 300, "x/" * 5000])
def test_a_name_that_no_file_can_have_is_refused(name: str):
    with pytest.raises(
        CheckpointError, match=r"cannot be opened .* Check that you may read it"
    ) as error:
        load_encoder(f"{name}.safetensors")
    assert len(str(error.value).encode()) < 1000


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


NO_PICKLE = (
    "Convert it to .safetensors with a tool you trust; pickle files can run code and are never"
)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".BIN"])
def test_a_pickle_suffix_is_refused_unopened(
    tmp_path: Path, intact: bytes, make_encoder: Any, suffix: str
):
    path = tmp_path / f"model{suffix}"
    for content in (None, intact):
        if content is not None:
            path.write_bytes(content)
        for read in every_reader(path, make_encoder()):
            with pytest.raises(CheckpointError, match=rf"{suffix} file, expected .*{NO_PICKLE}"):
                read()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused_and_runs_nothing(
    tmp_path: Path, make_encoder: Any, protocol: int
):
    fuse, path = tmp_path / "exploded", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"latents": Bomb(fuse)}, protocol))
    for read in every_reader(path, make_encoder()):
        with pytest.raises(CheckpointError, match=rf"is a pickle file.*{NO_PICKLE}"):
            read()
    assert not fuse.exists()
    pickle.loads(path.read_bytes())
    assert fuse.exists()


def test_a_torch_archive_under_another_name_is_refused(tmp_path: Path, make_encoder: Any):
    path = tmp_path / "model.safetensors"
    torch.save({"latents": torch.zeros(1)}, path)
    assert zipfile.is_zipfile(path)
    for read in every_reader(path, make_encoder()):
        with pytest.raises(CheckpointError, match=rf"is a zip archive.*{NO_PICKLE}"):
            read()


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path, length: int):
    path = tmp_path / "face.safetensors"
    text = b'{"__metadata__":{"format":"pt"}}'.ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + text)
    assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04")
    assert detect(path) == "unknown"


def test_types_that_only_other_programs_know_can_still_be_described(tmp_path: Path):
    path = tmp_path / "quantised.safetensors"
    entry = {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}
    text = json.dumps({"weight": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"ab")
    assert read_header(path).tensors["weight"].dtype == "F4"
    with pytest.raises(CheckpointError, match="found 1 tensors: weight"):
        load_encoder(path)


# ---- whatever the bytes are


@pytest.fixture(scope="session")
def attempt(tmp_path_factory: Any, make_encoder: Any) -> Callable[[bytes], None]:
    """Reads a file of these bytes in every way; lets every error but CheckpointError through."""
    path, encoder = tmp_path_factory.mktemp("fuzz") / "face.safetensors", make_encoder()

    def run(content: bytes) -> None:
        path.write_bytes(content)
        for read in every_reader(path, encoder):
            with contextlib.suppress(CheckpointError):
                read()

    return run


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_in_the_header_raise_checkpoint_errors_only(
    intact: bytes, attempt: Any, data: st.DataObject
):
    places = st.integers(0, header_end(intact) - 1)
    flips = data.draw(st.dictionaries(places, st.integers(1, 255), min_size=1, max_size=4))
    content = bytearray(intact)
    for place, mask in flips.items():
        content[place] ^= mask
    attempt(bytes(content))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_checkpoint_errors_only(attempt: Any, content: bytes, framed: bool):
    attempt(len(content).to_bytes(8, "little") + content if framed else content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["shape", "dtype", "data_offsets", None]), json_values)
def test_any_json_in_a_header_raises_checkpoint_errors_only(
    intact: bytes, attempt: Any, field: str | None, value: Any
):
    def change(entries: dict[str, Any]) -> None:
        if field is None:
            entries[LATENTS] = value
        else:
            entries[LATENTS][field] = value

    attempt(with_header(intact, change))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_file_cut_off_anywhere_never_loads(
    tmp_path_factory: Any, intact: bytes, data: st.DataObject
):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(intact[: data.draw(st.integers(0, len(intact) - 1))])
    with pytest.raises(CheckpointError):
        load_encoder(path)
