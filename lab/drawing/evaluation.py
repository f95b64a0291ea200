"""An evaluation that goes on where it stopped: what is missing is trained and drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_world import world
from tiny_world.files import BASE_FILE, ENCODER_FILE, VISION_FILE, WEIGHTS, weights_file

from ..ablations.encoders import BUDGET
from ..ablations.trained import trained_encoder
from ..subjects.held_out import HeldOut, fingerprint, held_out_subjects
from .methods import SHIPPED, Method, draw
from .picture_files import PictureFiles, file_hash
from .studio import Sampling, Studio


@dataclass(frozen=True)
class Evaluation:
    """What decides the pictures, and where they are kept.

    Attributes:
        folder: pictures and trained ablations; nothing in it is made twice.
        subjects_per_batch: how many identities share one run of the sampler; changes no picture.
    """

    folder: Path
    weights: Path = WEIGHTS
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    subjects_per_batch: int = 4
    budget: Mapping[str, object] = field(default_factory=lambda: BUDGET)

    def pictures(self, method: Method, identities: int) -> NDArray[np.float32]:
        """Pictures `[identities, styles, 32, 32, 3]`, drawn now as far as they are missing.

        Raises:
            TrainingNeededError: an ablation's encoder is missing and cannot be trained here.
            MissingWeightsError: a file of the world's models is missing.
        """
        encoder_file = self.encoder_file(method.encoder)
        files = self._files(method, encoder_file)
        missing = files.missing(identities)
        encoder = self._studio.load_encoder(encoder_file) if missing and encoder_file else None
        for part in missing:
            started = time.monotonic()
            files.write(part, self._draw(method, encoder, self.subjects(part.stop)[part.start :]))
            seconds = time.monotonic() - started
            print(
                f"{method.name}: identities {part.start}-{part.stop - 1}, {seconds:.0f} s",
                flush=True,
            )
        return files.read(identities)

    def subjects(self, count: int) -> list[HeldOut]:
        """The first held-out subjects of this seed."""
        return held_out_subjects(self.seed, count)

    def encoder_file(self, name: str | None) -> Path | None:
        """The file of the shipped encoder or of an ablation's, trained first where it is missing."""
        if name is None:
            return None
        if name == SHIPPED:
            return weights_file(self.weights, ENCODER_FILE)
        return trained_encoder(self.folder, name, self.base_hash, self.weights, self.budget)

    def _files(self, method: Method, encoder_file: Path | None) -> PictureFiles:
        settings = {
            "method": {"kind": type(method).__name__, **asdict(method)},
            "base": self.base_hash,
            "encoder": None if encoder_file is None else file_hash(encoder_file),
            "seed": self.seed,
            "world": self._world,
            "sampling": asdict(self.sampling),
        }
        return PictureFiles(self.folder, method.name, settings)

    def _draw(
        self, method: Method, encoder: Any, subjects: Sequence[HeldOut]
    ) -> NDArray[np.float32]:
        step = self.subjects_per_batch
        batches = [subjects[start : start + step] for start in range(0, len(subjects), step)]
        drawn = [draw(self._studio, method, encoder, batch) for batch in batches]
        size = world.SIZE
        return np.concatenate(drawn).reshape(len(subjects), len(world.STYLES), size, size, 3)

    @cached_property
    def _studio(self) -> Studio:
        return Studio(self.weights, self.sampling)

    @cached_property
    def base_hash(self) -> str:
        """Of the base model's and the image encoder's files."""
        return file_hash(*(weights_file(self.weights, name) for name in (BASE_FILE, VISION_FILE)))

    @cached_property
    def _world(self) -> str:
        return fingerprint(self.seed)
