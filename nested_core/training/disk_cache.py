"""Tensors that are computed once and read again: one safetensors file for each key.

A key is the hash of everything that the tensors follow from, so an entry is never out of date. A file
that cannot be read, or is of another key, counts as missing: it is named in the log and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..errors import NestedAttentionError
from .files import (
    UNFINISHED,
    read_notes,
    read_object,
    read_tensors,
    replace_file,
    write_tensors,
    writing,
)

_KEY = "key"
_CHUNK = 2**20
_MODELS = "models.json"

log = logging.getLogger(__name__)


def key_of(*parts: str | bytes) -> str:
    """A hash of the parts: others, or the same ones divided otherwise, have another."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def key_of_tensor(tensor: Tensor) -> str:
    """A hash of a tensor's values, shape and precision."""
    values = cast("Any", tensor.detach().cpu().contiguous().numpy())
    return key_of(
        str(tensor.dtype), str(list(tensor.shape)), memoryview(values).cast("B").tobytes()
    )


class DiskCache:
    """A folder of such files, which several runs and processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, key: str) -> Path:
        """Where an entry lies."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def holds(self, kind: str, key: str) -> bool:
        """Whether the entry is there, as far as its header tells."""
        path = self.path(kind, key)
        try:
            return path.exists() and self._is_of(path, key)
        except (NestedAttentionError, OSError) as error:
            return _is_made_again(path, error)

    def read(
        self, kind: str, key: str, is_right: Callable[[Mapping[str, Tensor]], bool]
    ) -> dict[str, Tensor] | None:
        """The entry's tensors; None where they are to be made.

        Args:
            is_right: whether names and shapes are those of such an entry.
        """
        path = self.path(kind, key)
        try:
            if not path.exists() or not self._is_of(path, key):
                return None
            tensors = read_tensors(path)
        except (NestedAttentionError, OSError) as error:
            _is_made_again(path, error)
            return None
        if not is_right(tensors):
            _is_made_again(path, "holds other tensors than it should")
            return None
        return tensors

    def _is_of(self, path: Path, key: str) -> bool:
        if read_notes(path).get(_KEY) == key:
            return True
        return _is_made_again(path, "is of another key")

    def write(self, kind: str, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Puts the entry there; until it is complete, under a name of this writer's own.

        Raises:
            TrainingError: the disk refuses.
        """
        path = self.path(kind, key)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_tensors(temporary, tensors, {_KEY: key})
                os.replace(temporary, path)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


def _is_made_again(path: Path, reason: object) -> bool:
    """False, told to the log."""
    log.warning("%s: is made again (%s)", path, " ".join(str(reason).split())[:300])
    return False


class ModelDigests:
    """Hashes of models' files by content, remembered as long as size and time of a file stay."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _MODELS

    def of(self, model: Path, parts: Sequence[str]) -> str:
        """A hash of all files in these folders of a model."""
        known, found = self._known(), dict[str, list[Any]]()
        hashed: list[str] = []
        for part in parts:
            for file in sorted(each for each in (model / part).rglob("*") if each.is_file()):
                name, stat = str(file.resolve()), file.stat()
                state = [stat.st_size, stat.st_mtime_ns]
                earlier = known.get(name)
                if earlier is None or earlier[:2] != state:
                    earlier = [*state, _digest_of_file(file)]
                found[name] = earlier
                hashed += [file.relative_to(model).as_posix(), str(earlier[2])]
        if any(known.get(name) != entry for name, entry in found.items()):
            content = {**known, **found}
            text = json.dumps(content, indent=1, sort_keys=True) + "\n"
            replace_file(self.path, text.encode())
        return key_of(*hashed)

    def _known(self) -> dict[str, list[Any]]:
        """By the file's name: size, time and hash."""
        if not self.path.exists():
            return {}
        try:
            entries = read_object(self.path)
        except NestedAttentionError as error:
            _is_made_again(self.path, error)
            return {}
        lists = {name: cast("list[Any]", each) for name, each in entries.items()}
        return {name: each for name, each in lists.items() if type(each) is list and len(each) == 3}


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
