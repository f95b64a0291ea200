"""The header of a safetensors file, read without trusting a byte of it.

The format (github.com/huggingface/safetensors, "Format"): the header's length in 8 bytes, little
end first; the header as JSON, `{name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}`;
the data, without holes. Every number is bounded before anything is computed from it, so that reading
costs no more than a file of that size is worth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..bounded_json import parse_json
from ..errors import CheckpointError, shown

FileKey = tuple[str, int, int, int]

_DTYPES_BY_BYTES = {
    1: "BOOL U8 I8 F8_E4M3 F8_E5M2",
    2: "I16 U16 F16 BF16",
    4: "I32 U32 F32",
    8: "I64 U64 F64",
}
_ITEM_BYTES = {dtype: size for size, names in _DTYPES_BY_BYTES.items() for dtype in names.split()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

# Far above any real file: SDXL with its text encoders, an image encoder, an average of all and an
# optimiser's two moments of each are 15,000 tensors in a header of 3 MB.
_MAX_READ_BYTES = 2**24
_MAX_TENSORS = 2**15
_MAX_NAME_CHARACTERS = 500
_MAX_METADATA_TEXTS, _MAX_METADATA_CHARACTERS = 1000, 2**23  # workflows and pictures are in some
_MAX_RANK = 8
_MAX_ELEMENTS = 2**48  # sizes of zero counted as one: no stride of any such tensor overflows
_MAX_VALUES = _MAX_TENSORS * 12  # eleven for a tensor of rank 5, the metadata's texts
_MAX_DEPTH = 8

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NEVER_PICKLE = (
    "Convert it to .safetensors with a tool you trust; "
    "pickle files can run code and are never opened."
)
AGAIN = "Download or copy it again."
_FOREIGN_STARTS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes pickle files", _NEVER_PICKLE),
    *(
        (bytes((0x80, n)), "a pickle file, as torch.save writes", _NEVER_PICKLE)
        for n in range(2, 6)
    ),
    (b"version https://git-lfs", "a Git LFS pointer in the file's place", "Run `git lfs pull`."),
    (b"<", "a web page in the file's place", "Download the file itself (a login may be needed)."),
    (b"GGUF", "a GGUF file", "Get the .safetensors file."),
)


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of one tensor; `start` and `stop` in bytes from the data's begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: every tensor lies inside the file and is as long as its shape says."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    data_start: int
    file_key: FileKey

    @property
    def where(self) -> str:
        """The file's name, as messages begin."""
        return self.path.name


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a safetensors file.

    Raises:
        CheckpointError: missing, empty, cut off, damaged, or another format. A pickle file is
            refused by its suffix and by its first bytes, unopened or unread beyond them.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path.name}: a {path.suffix} file, expected .safetensors. {_NEVER_PICKLE}"
        )
    with open_file(path) as file:
        key = file_key(path, file)
        length = _header_length(path.name, file, size := key[1])
        entries = _entries(path.name, file.read(length))
    metadata = _metadata(path.name, entries.pop("__metadata__", {}))
    _check_names(path.name, entries)
    tensors = {name: _spec(path.name, name, entry) for name, entry in entries.items()}
    _check_data(path.name, tensors, size - 8 - length)
    return Header(path, metadata, tensors, 8 + length, key)


def open_file(path: Path) -> BinaryIO:
    """The file, opened for reading; CheckpointError where it cannot be."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(
                f"{path.name}: is a folder or a device, expected a .safetensors file. Choose a file."
            )
        return path.open("rb")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.name}: no such file in {path.parent}. Check the name, or refresh the list."
        ) from error
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{shown(path.name)}: cannot be opened ({shown(error)}). Check that you may read it."
        ) from error


def file_key(path: Path, file: BinaryIO) -> FileKey:
    """What changes when a file is replaced: path, bytes, time in nanoseconds, inode."""
    status = os.fstat(file.fileno())
    return str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino


def _header_length(where: str, file: BinaryIO, size: int) -> int:
    """Length of the header; leaves the file at the header's begin."""
    if size == 0:
        raise CheckpointError(f"{where}: the file is empty. {AGAIN}")
    start = file.read(64)
    # Checked first: a length of 640 bytes looks like the first bytes of a pickle file.
    if start[8:9] != b"{":
        for magic, what, remedy in _FOREIGN_STARTS:
            if start.startswith(magic):
                raise CheckpointError(f"{where}: is {what}, expected safetensors. {remedy}")
        raise CheckpointError(
            f"{where}: is not a safetensors file (it begins with {start[:9].hex(' ')}, expected "
            f"the header's length and '{{'). {AGAIN}"
        )
    length = int.from_bytes(start[:8], "little")
    if length > _MAX_HEADER_BYTES:
        limit = f"expected at most {_MAX_HEADER_BYTES:,}"
        raise _damaged(where, f"claims a header of {length:,} bytes, {limit}")
    if 8 + length > size:
        raise CheckpointError(
            f"{where}: is cut off inside its header ({size:,} bytes, the header ends at "
            f"{8 + length:,}). {AGAIN}"
        )
    if length > _MAX_READ_BYTES:
        raise CheckpointError(
            f"{where}: has a header of {length:,} bytes, expected at most {_MAX_READ_BYTES:,}. Choose a "
            "file that holds one encoder or one subject."
        )
    file.seek(8)
    return length


def _entries(where: str, text: bytes) -> dict[str, Any]:
    try:
        value: Any = parse_json(text, _MAX_READ_BYTES, _MAX_VALUES, _MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: the header is not JSON ({shown(error)}). {AGAIN}"
        ) from error
    return cast("dict[str, Any]", value)  # it begins with '{'


def _check_names(where: str, names: Collection[str]) -> None:
    if len(names) > _MAX_TENSORS:
        raise CheckpointError(
            f"{where}: holds {len(names):,} tensors, expected at most {_MAX_TENSORS:,}. Choose a file "
            "that holds one encoder or one subject."
        )
    longest = max(names, key=len, default="")
    if len(longest) > _MAX_NAME_CHARACTERS:
        limit = f"longer than {_MAX_NAME_CHARACTERS} characters"
        raise _damaged(where, f"the name '{shown(longest)}' is {limit}")


def _metadata(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in cast("dict[str, Any]", value).values()
    ):
        raise _damaged(where, "the header's '__metadata__' is not a table of texts")
    texts = cast("dict[str, str]", value)
    characters = sum(len(key) + len(text) for key, text in texts.items())
    if len(texts) > _MAX_METADATA_TEXTS or characters > _MAX_METADATA_CHARACTERS:
        raise CheckpointError(
            f"{where}: has {len(texts):,} texts of {characters:,} characters as metadata, expected at "
            f"most {_MAX_METADATA_TEXTS:,} of {_MAX_METADATA_CHARACTERS:,}. Choose another file."
        )
    return texts


def _spec(where: str, name: str, entry: Any) -> TensorSpec:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]} if all(
            type(number) is int and number >= 0 for number in (*shape, start, stop)
        ):
            spec = TensorSpec(dtype, tuple(shape), start, stop)
        case _:
            entry_of = f"the header's entry of '{shown(name)}'"
            raise _damaged(where, f"{entry_of} is not a dtype, shape and offsets")
    _check_shape(where, name, spec.shape)
    num_bytes = spec.num_elements * _ITEM_BYTES.get(dtype, 0)
    if dtype in _ITEM_BYTES and stop - start != num_bytes:
        expected = f"expected {num_bytes:,} for {dtype} {list(spec.shape)}"
        raise _damaged(where, f"'{shown(name)}' has {stop - start:,} bytes, {expected}")
    return spec


def _check_shape(where: str, name: str, shape: tuple[int, ...]) -> None:
    # The rank first: the product of a million sizes alone takes minutes.
    if len(shape) > _MAX_RANK:
        expected = f"expected at most {_MAX_RANK}"
        raise _damaged(where, f"'{shown(name)}' has {len(shape):,} dimensions, {expected}")
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        expected = f"expected at most {_MAX_ELEMENTS:,} elements"
        raise _damaged(where, f"'{shown(name)}' has the shape {list(shape)}, {expected}")


def _check_data(where: str, tensors: Mapping[str, TensorSpec], size: int) -> None:
    end = 0
    for spec in sorted(tensors.values(), key=lambda spec: (spec.start, spec.stop)):
        if spec.start != end or spec.stop < spec.start:
            raise _damaged(where, f"the tensors overlap or leave gaps at byte {end:,} of the data")
        end = spec.stop
    if end > size:
        raise CheckpointError(
            f"{where}: is cut off ({size:,} of {end:,} bytes of tensors). {AGAIN}"
        )
    if end < size:
        raise _damaged(where, f"has {size - end:,} bytes behind its last tensor")


def _damaged(where: str, finding: str) -> CheckpointError:
    return CheckpointError(f"{where}: {finding}. The file is damaged. {AGAIN}")
