"""Safetensors files, written so that the same content gives the same bytes.

The library's writer orders the metadata by a hash that every process seeds anew, so two identical
runs gave different files. The format leaves the order free; here it is sorted.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError, NestedAttentionError, shown
from ..precision import dtype_name

METADATA = "__metadata__"

_ABANDONED_SECONDS = 3600
# With and without a file's name in front, as earlier versions wrote it.
_TEMPORARY = re.compile(r"\.(?:.*\.)?safetensors\.[0-9a-f]{32}\.tmp", re.DOTALL)


@contextmanager
def complete_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Generator[Path]:
    """A file beside `path` with this content, under a temporary name, for the caller to rename.

    It is on the disk before the caller gets it, and gone afterwards, whatever happens. What killed
    programs left behind for an hour goes too.

    Raises:
        CheckpointError: the disk refuses, here or in the caller's block.
    """
    # Not tempfile: its files are private to the user, and model folders are shared. Not the file's
    # own name: the longest that fits would not fit any more.
    temporary = path.parent / f".safetensors.{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            _write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        remove_abandoned(temporary, lambda entry: _TEMPORARY.fullmatch(entry.name) is not None)
        yield temporary
    except NestedAttentionError:
        raise
    # A name that the platform cannot write down at all is a ValueError.
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{shown(path.name)}: cannot be written to {path.parent} ({shown(error, 300)}). Check that "
            "you may write there, that the disk is not full, and that no program holds the file open."
        ) from error
    finally:
        # What went wrong before is what the user must hear of.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # Widest elements first, as the format's own writer does: each tensor is then aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        entries[name] = {
            "dtype": dtype_name(tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for name in names:
        # One after the other: a whole encoder need not fit into memory a second time.
        row_order = tensors[name].detach().cpu().contiguous().flatten()
        file.write(row_order.view(torch.uint8).numpy().data)


def remove_abandoned(temporary: Path, is_leftover: Callable[[os.DirEntry[str]], bool]) -> None:
    """Removes leftovers beside this file that no program can still be at, since they are too old.

    A folder that forbids it is left as it is.
    """
    with suppress(OSError):
        # The server's clock, not this machine's, told the other files' times.
        now = temporary.stat().st_mtime
        with os.scandir(temporary.parent) as entries:
            for entry in entries:
                with suppress(OSError):
                    last_written = entry.stat(follow_symlinks=False).st_mtime
                    if is_leftover(entry) and now - last_written > _ABANDONED_SECONDS:
                        os.unlink(entry)
