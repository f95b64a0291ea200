"""An evaluation that goes on where it stopped: what is missing is trained and drawn, then measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import world
from ..files import BASE_FILE, ENCODER_FILE, VISION_FILE, WEIGHTS, weights_file
from .ablations import BUDGET, encoder_file, train_if_missing
from .methods import SHIPPED, Method, draw
from .orders import Sitter, fingerprint, sitters
from .parts import Parts, file_hash
from .scores import Scores, measure
from .studio import Sampling, Studio


@dataclass(frozen=True)
class Evaluation:
    """What decides the pictures, and where they are kept.

    Attributes:
        folder: pictures and trained ablations; nothing in it is made twice.
        sitters_per_batch: how many identities share one run of the sampler; changes no picture.
    """

    folder: Path
    weights: Path = WEIGHTS
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    sitters_per_batch: int = 4
    budget: Mapping[str, object] = field(default_factory=lambda: BUDGET)

    def pictures(self, method: Method, identities: int) -> NDArray[np.float32]:
        """Pictures `[identities, styles, 32, 32, 3]`, drawn now as far as they are missing.

        Raises:
            TrainingNeededError: an ablation's encoder is missing and cannot be trained here.
            MissingWeightsError: a file of the world's models is missing.
        """
        parts = self._parts(method)
        missing = parts.missing(identities)
        if missing:
            encoder = self._load_encoder(method)
        for part in missing:
            started = time.monotonic()
            parts.write(part, self._draw(method, encoder, self.sitters(part.stop)[part.start :]))
            seconds = time.monotonic() - started
            print(
                f"{method.name}: identities {part.start}-{part.stop - 1}, {seconds:.0f} s",
                flush=True,
            )
        return parts.read(identities)

    def scores(self, method: Method, identities: int) -> Scores:
        """The scores of those pictures."""
        return measure(self.sitters(identities), self.pictures(method, identities))

    def sitters(self, count: int) -> list[Sitter]:
        """The first identities of this seed."""
        return sitters(self.seed, count)

    def encoder_path(self, method: Method) -> Path | None:
        """The encoder's file, trained first where it is missing."""
        return None if method.encoder is None else self.encoder_file(method.encoder)

    def encoder_file(self, name: str) -> Path:
        """The file of the shipped encoder or of an ablation's, trained first where it is missing."""
        if name == SHIPPED:
            return weights_file(self.weights, ENCODER_FILE)
        file = encoder_file(self.folder, name, self.base_hash, self.budget)
        train_if_missing(file, name, self.weights, self.budget)
        return file

    def _parts(self, method: Method) -> Parts:
        encoder = self.encoder_path(method)
        settings = {
            "method": {"kind": type(method).__name__, **asdict(method)},
            "base": self.base_hash,
            "encoder": None if encoder is None else file_hash(encoder),
            "seed": self.seed,
            "world": self._world,
            "sampling": asdict(self.sampling),
        }
        return Parts(self.folder, method.name, settings)

    def _draw(self, method: Method, encoder: Any, cast: list[Sitter]) -> NDArray[np.float32]:
        step = self.sitters_per_batch
        batches = [cast[start : start + step] for start in range(0, len(cast), step)]
        drawn = [draw(self._studio, method, encoder, batch) for batch in batches]
        size = world.SIZE
        return np.concatenate(drawn).reshape(len(cast), len(world.STYLES), size, size, 3)

    def _load_encoder(self, method: Method) -> Any:
        file = self.encoder_path(method)
        return None if file is None else self._studio.load_encoder(file)

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
