"""Pictures on disk: drawn once and kept, so that an evaluation can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny_world import world
from tiny_world.sheet import to_image

PART = 16  # rows


class PictureFiles:
    """All pictures of one method, under settings that decide every pixel.

    A file is a part of them, in 8 bits: a row for each identity or scene, a column for each prompt.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, object]) -> None:
        self._settings = json.dumps(settings, sort_keys=True, indent=2)
        key = hashlib.sha256(self._settings.encode()).hexdigest()[:12]
        words = re.sub("[ ,:]+", "_", name)
        self.folder = folder / "pictures" / f"{words}-{key}"

    def missing(self, rows: int) -> list[range]:
        """The parts that nobody has drawn yet."""
        return [part for part in _parts(rows) if not self._file(part).exists()]

    def write(self, part: range, pictures: NDArray[np.float32]) -> None:
        """One part, `[rows, columns, 32, 32, 3]`. The file is there whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(f"{self._settings}\n", encoding="utf-8")
        sheet = pictures.swapaxes(1, 2).reshape(len(part) * world.SIZE, -1, 3)
        unfinished = self._file(part).with_suffix(".unfinished")
        to_image(sheet).save(unfinished, format="PNG")
        os.replace(unfinished, self._file(part))

    def read(self, rows: int) -> NDArray[np.float32]:
        """All of them, `[rows, columns, 32, 32, 3]` in [0, 1]."""
        size = world.SIZE
        sheets = np.concatenate([_read(self._file(part)) for part in _parts(rows)])
        return sheets.reshape(rows, size, -1, size, 3).swapaxes(1, 2)

    def _file(self, part: range) -> Path:
        return self.folder / f"{part.start:04}-{part.stop - 1:04}.png"


def _parts(rows: int) -> Iterator[range]:
    for start in range(0, rows, PART):
        yield range(start, min(start + PART, rows))


def _read(file: Path) -> NDArray[np.float32]:
    """`[height, width, 3]` in [0, 1]."""
    with Image.open(file) as image:
        return np.asarray(image, np.float32) / 255.0


def file_hash(*files: Path) -> str:
    """Of the bytes of these files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
