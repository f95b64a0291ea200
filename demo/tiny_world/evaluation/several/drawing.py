"""The ways of drawing several subjects that are compared, and their pictures on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ... import world
from ...files import BASE_FILE, ENCODER_FILE, VISION_FILE
from ...sheet import to_image
from ..decoupled import with_decoupled_subjects
from ..parts import file_hash
from ..running import Evaluation
from ..studio import Studio, run_node
from .open_base import open_weights
from .scenes import SETTINGS, Company, company

BATCH = 8  # companies in one run of the sampler: at most 24 bindings
_MARGIN = 1  # pixels around the box that a user would paint

# What decides the pictures beside settings and weights: pictures of an earlier method are no use.
_CODE = (
    "nested_core/attention.py",
    "nested_core/competition.py",
    "nodes/bridge/plan.py",
    "nodes/bridge/sampling.py",
)


@dataclass(frozen=True)
class Way:
    """How several subjects are put into a picture.

    Attributes:
        encoder: `shipped`, the name of an ablation, or None for words alone.
        masks: whether each subject's box is painted by hand.
    """

    name: str
    encoder: str | None = "shipped"
    separation: float = 0.0
    masks: bool = False
    decoupled: bool = False

    def prepare(self, studio: Studio, encoder: Any, cast: Sequence[Company]) -> tuple[Any, ...]:
        """MODEL, CLIP and a prompt for every company."""
        if encoder is None:
            named = [
                [tuple(world.PARTS[each.identity.kind]) for each in group.placed] for group in cast
            ]
            captions = [
                group.caption(named=parts) for group, parts in zip(cast, named, strict=True)
            ]
            return studio.model, studio.clip, captions
        if self.decoupled:
            return self._decoupled(studio, encoder, cast)
        bindings: dict[str, Any] = {}
        captions = []
        for group in cast:
            tokens = []
            for placed, photograph in zip(group.placed, group.photographs, strict=True):
                number = len(bindings)
                tokens.append(f"<s{number}>")
                (bindings[f"binding_{number}"],) = run_node(
                    "NestedAttention_BindSubject",
                    subject=studio.encode_subject(encoder, photograph),
                    token=tokens[-1],
                    noun=placed.identity.kind,
                    mask=_box(placed) if self.masks else None,
                )
            captions.append(group.caption(tokens))
        model, clip = run_node(
            "NestedAttention_Apply",
            model=studio.model,
            clip=studio.clip,
            bindings=bindings,
            separation=self.separation,
        )
        return model, clip, captions

    def _decoupled(self, studio: Studio, encoder: Any, cast: Sequence[Company]) -> tuple[Any, ...]:
        tokens = [
            torch.cat([studio.encode_subject(encoder, each).tokens for each in group.photographs])
            for group in cast
        ]
        model = with_decoupled_subjects(studio.model, encoder, torch.stack(tokens), 1.0)
        return model, studio.clip, [group.caption() for group in cast]


WAYS = (
    Way("words", encoder=None),
    Way("decoupled", encoder="decoupled", decoupled=True),
    Way("nested"),
    Way("nested, masks", masks=True),
    Way("nested, separation", separation=1.0),
    Way("nested, masks and separation", separation=1.0, masks=True),
)


def _box(placed: world.Placed) -> torch.Tensor:
    """What somebody would paint in a second, `[1, 32, 32]`."""
    rows, columns = np.nonzero(world.subject_mask(placed))
    mask = torch.zeros(1, world.SIZE, world.SIZE)
    top, left = max(rows.min() - _MARGIN, 0), max(columns.min() - _MARGIN, 0)
    mask[:, top : rows.max() + 1 + _MARGIN, left : columns.max() + 1 + _MARGIN] = 1.0
    return mask


class Drawings:
    """Pictures of all ways and settings; drawn now as far as they are missing."""

    def __init__(self, evaluation: Evaluation, count: int) -> None:
        self.evaluation, self.count = evaluation, count
        self._studios: dict[Path, Studio] = {}

    def companies(self, setting: str) -> list[Company]:
        """Who is drawn."""
        return [company(self.evaluation.seed, setting, index) for index in range(self.count)]

    def pictures(self, setting: str, way: Way) -> NDArray[np.float32]:
        """`[companies, 32, 32, 3]` in [0, 1].

        Raises:
            TrainingNeededError: a base model or encoder is missing and cannot be trained here.
        """
        weights = self._weights(setting)
        encoder = self._encoder_file(way)
        file = self._file(setting, way, weights, encoder)
        if not file.exists():
            started = time.monotonic()
            drawn = self._draw(setting, way, weights, encoder)
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".unfinished")
            to_image(np.concatenate(list(drawn))).save(unfinished, format="PNG")
            os.replace(unfinished, file)
            seconds = time.monotonic() - started
            print(f"{setting}: {way.name}, {self.count} pictures, {seconds:.0f} s", flush=True)
        with Image.open(file) as image:
            sheet = np.asarray(image, np.float32) / 255.0
        return sheet.reshape(self.count, world.SIZE, world.SIZE, 3)

    def _weights(self, setting: str) -> Path:
        if SETTINGS[setting].says_places:
            return self.evaluation.weights
        return open_weights(
            self.evaluation.folder, self.evaluation.weights, self.evaluation.base_hash
        )

    def _encoder_file(self, way: Way) -> Path | None:
        if way.encoder is None:
            return None
        return self.evaluation.encoder_file(way.encoder)

    def _file(self, setting: str, way: Way, weights: Path, encoder: Path | None) -> Path:
        evaluation = self.evaluation
        files = [weights / name for name in (BASE_FILE, VISION_FILE, ENCODER_FILE)]
        root = Path(os.environ["NESTED_ATTENTION_ROOT"])
        settings = {
            "way": asdict(way),
            "setting": asdict(SETTINGS[setting]),
            "count": self.count,
            "seed": evaluation.seed,
            "sampling": asdict(evaluation.sampling),
            "weights": file_hash(*files),
            "encoder": None if encoder is None else file_hash(encoder),
            "code": file_hash(*(root / name for name in _CODE)),
            "orders": [each.caption() for each in self.companies(setting)[:4]],
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        name = f"{setting}-{way.name}-{key}.png".replace(",", "").replace(" ", "_")
        return evaluation.folder / "several" / name

    @torch.inference_mode()  # as ComfyUI executes nodes
    def _draw(
        self, setting: str, way: Way, weights: Path, encoder: Path | None
    ) -> NDArray[np.float32]:
        if weights not in self._studios:
            self._studios[weights] = Studio(weights, self.evaluation.sampling)
        studio = self._studios[weights]
        loaded = None if encoder is None else studio.load_encoder(encoder)
        cast = self.companies(setting)
        drawn = []
        for start in range(0, len(cast), BATCH):
            batch = cast[start : start + BATCH]
            drawn.append(studio.draw(*way.prepare(studio, loaded, batch), batch))
        return np.concatenate(drawn)
