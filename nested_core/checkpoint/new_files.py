"""New files under names of the user's choice: valid on every platform, and never taken twice."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, shown
from ..words import composed
from .weights import check_weights
from .writing import complete_file, remove_abandoned

_SUFFIX = ".safetensors"
# File systems allow 255 bytes for a name, and a number and the suffix follow. Windows allows 260
# characters for a path unless it is told otherwise, most of which the user's own folders may need.
_MAX_PART_BYTES, _MAX_PREFIX_BYTES = 200, 600
_IS_WINDOWS = os.name == "nt"
_RESERVED = frozenset('<>:"|?*')
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *", re.IGNORECASE)
_NUMBERED = re.compile(r"_([0-9]{5,9})_\.safetensors", re.IGNORECASE)


def write_new_file(
    folder: str | os.PathLike[str],
    prefix: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> Path:
    """Writes `PREFIX_00001_.safetensors`, or the first number that is free, and returns its path.

    The file takes its name when it is complete, by an operation that fails where the name is taken.
    So programs on several machines can save under one prefix at once, and none loses a file.

    Args:
        prefix: folders inside `folder` and the begin of the name, see `parse_prefix`.

    Raises:
        CheckpointError: the prefix is no file name, tensors that could not be read again, or the
            disk refuses.
    """
    *folders, stem = parse_prefix(prefix)
    directory = Path(folder, *folders)
    check_weights(stem, tensors)
    with complete_file(directory / f"{stem}{_SUFFIX}", tensors, metadata) as temporary:
        for number in count(_first_number(directory, stem)):
            path = directory / f"{stem}_{number:05}_{_SUFFIX}"
            if _take_name(temporary, path):
                return path
    raise AssertionError("count() has no end")


def parse_prefix(prefix: str) -> tuple[str, ...]:
    """The folders of a prefix and the begin of the file's name, separated by `/` or `\\`.

    The rules are those of all platforms together: workflows are shared between them.

    Raises:
        CheckpointError: a part that no file can be called, or a place outside the folder.
    """
    parts = re.split(r"[/\\]", composed(prefix))
    if not parts[0] and len(parts) > 1:
        raise _wrong(prefix, "begins with a slash and so points outside the folder of subjects")
    stem = parts[-1]
    parts = [part for part in parts if part not in ("", ".")]
    if stem in ("", "."):
        raise _wrong(prefix, "has no name")
    for part in parts:
        problem = _part_problem(part)
        if problem is not None:
            raise _wrong(prefix, problem)
    if len("/".join(parts).encode()) > _MAX_PREFIX_BYTES:
        raise _wrong(prefix, f"is longer than {_MAX_PREFIX_BYTES} bytes")
    return tuple(parts)


def _wrong(prefix: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"Save Subject: the filename_prefix '{shown(prefix)}' {problem}. Expected a name that every "
        "platform allows, with folders in front if you like. Write for example people/anna."
    )


def _part_problem(part: str) -> str | None:
    """What keeps a file or folder from being called so on some platform."""
    if part == "..":
        return "points outside the folder of subjects ('..')"
    for letter in part:
        if unicodedata.category(letter) in ("Cc", "Cs"):
            return f"holds U+{ord(letter):04X}, which no name may hold"
        if letter in _RESERVED:
            return f"holds {letter}, which Windows does not allow in names"
    if part[-1] in ". ":
        return f"has the part '{shown(part)}', which ends with a dot or a space"
    if _DEVICE.fullmatch(part.partition(".")[0]):
        return f"has the part '{shown(part)}', which is a device on Windows"
    if len(part.encode()) > _MAX_PART_BYTES:
        return f"has a part of {len(part.encode())} bytes, at most {_MAX_PART_BYTES} fit"
    return None


def _first_number(directory: Path, stem: str) -> int:
    """One above the highest number of this stem, upper and lower case the same as on Windows."""
    start = os.path.normcase(stem)
    numbers = [
        int(match[1])
        for name in os.listdir(directory)
        if os.path.normcase(name[: len(stem)]) == start
        and (match := _NUMBERED.fullmatch(name, len(stem)))
    ]
    return max(numbers, default=0) + 1


def _take_name(temporary: Path, path: Path) -> bool:
    """Gives the complete file its name; False where another file has it.

    Each way asks the file system itself, in one step that only one program can win. Whether a file
    is there, asked beforehand, is an answer of the past, on network shares up to seconds old.
    """
    try:
        if _IS_WINDOWS:
            os.rename(temporary, path)  # fails there, and only there, where the name is taken
        else:
            os.link(temporary, path)
    except FileExistsError:
        return False
    except (OSError, AttributeError, NotImplementedError):
        # No second names on this file system: FAT, many network shares, some builds of Python.
        return _take_name_in_two_steps(temporary, path)
    return True


def _take_name_in_two_steps(temporary: Path, path: Path) -> bool:
    """As `_take_name`: makes an empty file of that name, which only one can, and replaces it at once.

    A program that is killed between the two leaves the empty file, which loaders refuse as empty; a
    later save removes it.
    """
    remove_abandoned(temporary, _is_empty_name)
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return True


def _is_empty_name(entry: os.DirEntry[str]) -> bool:
    return _NUMBERED.search(entry.name) is not None and entry.stat().st_size == 0
