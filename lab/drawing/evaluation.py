"""An evaluation that goes on where it stopped: what is missing is trained and drawn."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny_world.files import BASE_FILE, FILES, UNET, VISION_FILE, WEIGHTS, weights_file

from ..ablations.encoders import BUDGET
from ..ablations.open_base import open_weights
from ..ablations.trained import trained_encoder
from ..subjects.groups import SETTINGS, GroupPrompt, group_prompt
from ..subjects.held_out import HeldOut, Prompt, fingerprint, held_out_subjects
from .methods import SHIPPED, Method, draw
from .picture_files import PictureFiles, file_hash
from .studio import Sampling, Studio

# What decides the pictures beside settings and weights: pictures of an earlier method are no use.
_CODE = (
    "nested_core/*.py",
    "nested_core/call/*.py",
    "nodes/bridge/model/*.py",
    "nodes/bridge/families/*.py",
)

Row = Sequence[Prompt]


@dataclass(frozen=True)
class Evaluation:
    """What decides the pictures, and where they are kept.

    Attributes:
        model: which of the world's base models.
        folder: pictures and trained ablations; nothing in it is made twice.
        rows_per_batch: how many identities, or scenes of several subjects, share one run of the
            sampler. Changes no picture. Eight scenes have at most 24 subjects; the node takes 32.
    """

    folder: Path
    weights: Path = WEIGHTS
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    rows_per_batch: int = 8
    budget: Mapping[str, object] = field(default_factory=lambda: BUDGET)
    model: str = UNET

    def subjects(self, count: int) -> list[HeldOut]:
        """The first held-out subjects of this seed."""
        return held_out_subjects(self.seed, count)

    def pictures(self, method: Method, identities: int) -> NDArray[np.float32]:
        """Pictures `[identities, styles, 32, 32, 3]`, drawn now as far as they are missing.

        Raises:
            TrainingNeededError: an ablation's encoder is missing and cannot be trained here.
            MissingWeightsError: a file of the world's models is missing.
        """
        rows = [subject.prompts for subject in self.subjects(identities)]
        return self._pictures(method.name, method, rows, self.weights)

    def groups(self, setting: str, count: int) -> list[GroupPrompt]:
        """The first scenes of several subjects."""
        return [group_prompt(self.seed, setting, index) for index in range(count)]

    def group_pictures(self, setting: str, method: Method, count: int) -> NDArray[np.float32]:
        """Pictures `[scenes, 32, 32, 3]` of several subjects; where no place is said, by the base
        model that was never told any. The rest is as in `pictures`.
        """
        weights = self.weights
        if not SETTINGS[setting].says_places:
            weights = open_weights(self.folder, weights, self._base_hash(weights), self.model)
        rows = [[prompt] for prompt in self.groups(setting, count)]
        return self._pictures(f"{setting}: {method.name}", method, rows, weights)[:, 0]

    def encoder_file(self, name: str | None) -> Path | None:
        """The file of the shipped encoder or of an ablation's, trained first where it is missing."""
        if name is None:
            return None
        if name == SHIPPED:
            return weights_file(self.weights, FILES[self.model].encoder)
        base_hash = self._base_hash(self.weights)
        return trained_encoder(self.folder, name, base_hash, self.weights, self.budget, self.model)

    def _base_hash(self, weights: Path) -> str:
        """Of the base model's files and the image encoder's."""
        names = dict.fromkeys((BASE_FILE, FILES[self.model].base, VISION_FILE))
        return _file_hash(*(weights_file(weights, name) for name in names))

    def _pictures(
        self, name: str, method: Method, rows: Sequence[Row], weights: Path
    ) -> NDArray[np.float32]:
        """`[rows, prompts, 32, 32, 3]` in [0, 1]."""
        encoder_file = self.encoder_file(method.encoder)
        settings = {
            "method": {"kind": type(method).__name__, **asdict(method)},
            "base": self._base_hash(weights),
            "encoder": None if encoder_file is None else file_hash(encoder_file),
            "code": _code_hash(),
            "seed": self.seed,
            "world": fingerprint(self.seed),
            "first": [prompt.full_caption() for prompt in rows[0]],
            "sampling": asdict(self.sampling),
        }
        files = PictureFiles(self.folder, name, settings)
        for part in files.missing(len(rows)):
            started = time.monotonic()
            files.write(
                part, self._draw(method, weights, encoder_file, rows[part.start : part.stop])
            )
            seconds = time.monotonic() - started
            print(f"{name}, {part.start}-{part.stop - 1}: {seconds:.0f} s", flush=True)
        return files.read(len(rows))

    def _draw(
        self, method: Method, weights: Path, encoder_file: Path | None, rows: Sequence[Row]
    ) -> NDArray[np.float32]:
        studio = _studio(weights, self.sampling, self.model)
        encoder = None if encoder_file is None else studio.load_encoder(encoder_file)
        drawn = []
        for start in range(0, len(rows), self.rows_per_batch):
            batch = rows[start : start + self.rows_per_batch]
            drawn.append(draw(studio, method, encoder, [prompt for row in batch for prompt in row]))
        pictures = np.concatenate(drawn)
        return pictures.reshape(len(rows), -1, *pictures.shape[1:])


@cache
def _studio(weights: Path, sampling: Sampling, name: str) -> Studio:
    return Studio(weights, sampling, name)


@cache
def _file_hash(*files: Path) -> str:
    return file_hash(*files)


@cache
def _code_hash() -> str:
    root = Path(os.environ["NESTED_ATTENTION_ROOT"])
    return file_hash(*sorted(file for pattern in _CODE for file in root.glob(pattern)))
