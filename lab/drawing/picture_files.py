"""Pictures on disk: drawn once and kept, so that an evaluation can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny_world import world
from tiny_world.sheet import to_image

PART = 16  # identities


class PictureFiles:
    """All pictures of one method, under settings that decide every pixel.

    A file is a part of them, in 8 bits: a row for each identity, a column for each style.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, object]) -> None:
        self._settings = json.dumps(settings, sort_keys=True, indent=2)
        self.folder = folder / "pictures" / f"{name}-{short_hash(self._settings)}"

    def missing(self, identities: int) -> list[range]:
        """The parts that nobody has drawn yet."""
        return [part for part in _parts(identities) if not self._file(part).exists()]

    def write(self, part: range, pictures: NDArray[np.float32]) -> None:
        """One part, `[identities, styles, 32, 32, 3]`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.json").write_text(f"{self._settings}\n", encoding="utf-8")
        rows = [np.concatenate(list(of_styles), axis=1) for of_styles in pictures]
        write_picture(self._file(part), np.concatenate(rows))

    def read(self, identities: int) -> NDArray[np.float32]:
        """All of them, `[identities, styles, 32, 32, 3]` in [0, 1]."""
        return np.concatenate([self._read(part) for part in _parts(identities)])

    def _read(self, part: range) -> NDArray[np.float32]:
        size, styles = world.SIZE, len(world.STYLES)
        sheet = read_picture(self._file(part))
        return sheet.reshape(len(part), size, styles, size, 3).swapaxes(1, 2)

    def _file(self, part: range) -> Path:
        return self.folder / f"{part.start:04}-{part.stop - 1:04}.png"


def _parts(identities: int) -> Iterator[range]:
    for start in range(0, identities, PART):
        yield range(start, min(start + PART, identities))


def write_picture(file: Path, picture: NDArray[np.float32]) -> None:
    """The file is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    to_image(picture).save(unfinished, format="PNG")
    os.replace(unfinished, file)


def read_picture(file: Path) -> NDArray[np.float32]:
    """`[height, width, 3]` in [0, 1]."""
    with Image.open(file) as image:
        return np.asarray(image, np.float32) / 255.0


def short_hash(text: str) -> str:
    """Enough of it for a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(*files: Path) -> str:
    """Of the bytes of these files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
