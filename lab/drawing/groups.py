"""The ways of drawing several subjects that are compared, and their pictures on disk."""

from __future__ import annotations

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
from tiny_world import world
from tiny_world.files import BASE_FILE, ENCODER_FILE, VISION_FILE

from ..ablations.decoupled import with_decoupled_subjects
from ..ablations.open_base import open_weights
from ..subjects.groups import SETTINGS, GroupPrompt, group_prompt
from .evaluation import Evaluation
from .methods import SHIPPED, Prepared
from .picture_files import file_hash, read_picture, short_hash, write_picture
from .studio import Studio, run_node

BATCH = 8  # pictures in one run of the sampler: at most 24 bindings
_MARGIN = 1  # pixels around the box that a user would paint

# What decides the pictures beside settings and weights: pictures of an earlier method are no use.
_CODE = (
    "nested_core/attention.py",
    "nested_core/competition.py",
    "nodes/bridge/model/plan.py",
    "nodes/bridge/model/sampling.py",
)


@dataclass(frozen=True)
class GroupMethod:
    """How several subjects are put into a picture.

    Attributes:
        encoder: `shipped`, the name of an ablation, or None for words alone.
        masks: whether each subject's box is painted by hand.
    """

    name: str
    encoder: str | None = SHIPPED
    separation: float = 0.0
    masks: bool = False
    decoupled: bool = False

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[GroupPrompt]) -> Prepared:
        """MODEL, CLIP and a caption for every prompt."""
        if encoder is None:
            return studio.model, studio.clip, [prompt.full_caption() for prompt in prompts]
        if self.decoupled:
            return _decoupled(studio, encoder, prompts)
        bindings: dict[str, Any] = {}
        captions = []
        for prompt in prompts:
            tokens = []
            for placed, photograph in zip(prompt.subjects, prompt.photographs, strict=True):
                number = len(bindings)
                tokens.append(f"<s{number}>")
                (bindings[f"binding_{number}"],) = run_node(
                    "NestedAttention_BindSubject",
                    subject=studio.encode_subject(encoder, photograph),
                    token=tokens[-1],
                    noun=placed.identity.kind,
                    mask=_box(placed) if self.masks else None,
                )
            captions.append(prompt.caption(tokens))
        model, clip = run_node(
            "NestedAttention_Apply",
            model=studio.model,
            clip=studio.clip,
            bindings=bindings,
            separation=self.separation,
        )
        return model, clip, captions


def _decoupled(studio: Studio, encoder: Any, prompts: Sequence[GroupPrompt]) -> Prepared:
    tokens = [
        torch.cat([studio.encode_subject(encoder, shown).tokens for shown in prompt.photographs])
        for prompt in prompts
    ]
    model = with_decoupled_subjects(studio.model, encoder, torch.stack(tokens), 1.0)
    return model, studio.clip, [prompt.caption() for prompt in prompts]


GROUP_METHODS = (
    GroupMethod("words", encoder=None),
    GroupMethod("decoupled", encoder="decoupled", decoupled=True),
    GroupMethod("nested"),
    GroupMethod("nested, masks", masks=True),
    GroupMethod("nested, separation", separation=1.0),
    GroupMethod("nested, masks and separation", separation=1.0, masks=True),
)


def _box(placed: world.Placed) -> torch.Tensor:
    """What somebody would paint in a second, `[1, 32, 32]`."""
    rows, columns = np.nonzero(world.subject_mask(placed))
    mask = torch.zeros(1, world.SIZE, world.SIZE)
    top, left = max(rows.min() - _MARGIN, 0), max(columns.min() - _MARGIN, 0)
    mask[:, top : rows.max() + 1 + _MARGIN, left : columns.max() + 1 + _MARGIN] = 1.0
    return mask


class GroupPictures:
    """Pictures of all these methods and settings; drawn now as far as they are missing."""

    def __init__(self, evaluation: Evaluation, count: int) -> None:
        self.evaluation, self.count = evaluation, count
        self._studios: dict[Path, Studio] = {}

    def prompts(self, setting: str) -> list[GroupPrompt]:
        """What is drawn."""
        return [group_prompt(self.evaluation.seed, setting, index) for index in range(self.count)]

    def pictures(self, setting: str, method: GroupMethod) -> NDArray[np.float32]:
        """`[prompts, 32, 32, 3]` in [0, 1].

        Raises:
            TrainingNeededError: a base model or encoder is missing and cannot be trained here.
        """
        weights = self._weights(setting)
        encoder = self.evaluation.encoder_file(method.encoder)
        file = self._file(setting, method, weights, encoder)
        if not file.exists():
            started = time.monotonic()
            write_picture(file, np.concatenate(self._draw(setting, method, weights, encoder)))
            seconds = time.monotonic() - started
            print(f"{setting}: {method.name}, {self.count} pictures, {seconds:.0f} s", flush=True)
        return read_picture(file).reshape(self.count, world.SIZE, world.SIZE, 3)

    def _weights(self, setting: str) -> Path:
        evaluation = self.evaluation
        if SETTINGS[setting].says_places:
            return evaluation.weights
        return open_weights(evaluation.folder, evaluation.weights, evaluation.base_hash)

    def _file(self, setting: str, method: GroupMethod, weights: Path, encoder: Path | None) -> Path:
        evaluation = self.evaluation
        files = [weights / name for name in (BASE_FILE, VISION_FILE, ENCODER_FILE)]
        root = Path(os.environ["NESTED_ATTENTION_ROOT"])
        settings = {
            "method": asdict(method),
            "setting": asdict(SETTINGS[setting]),
            "count": self.count,
            "seed": evaluation.seed,
            "sampling": asdict(evaluation.sampling),
            "weights": file_hash(*files),
            "encoder": None if encoder is None else file_hash(encoder),
            "code": file_hash(*(root / name for name in _CODE)),
            "prompts": [prompt.caption() for prompt in self.prompts(setting)[:4]],
        }
        key = short_hash(json.dumps(settings, sort_keys=True))
        name = f"{setting}-{method.name}-{key}.png".replace(",", "").replace(" ", "_")
        return evaluation.folder / "several" / name

    @torch.inference_mode()  # as ComfyUI executes nodes
    def _draw(
        self, setting: str, method: GroupMethod, weights: Path, encoder: Path | None
    ) -> list[NDArray[np.float32]]:
        """Every picture."""
        if weights not in self._studios:
            self._studios[weights] = Studio(weights, self.evaluation.sampling)
        studio = self._studios[weights]
        loaded = None if encoder is None else studio.load_encoder(encoder)
        prompts, drawn = self.prompts(setting), []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            model, clip, captions = method.prepare(studio, loaded, batch)
            drawn += list(studio.draw(model, clip, captions, batch))
        return drawn
