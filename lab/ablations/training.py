"""Training the ablations, by the trainer and the settings of the shipped encoder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_world import models
from torch import Tensor

from nested_core.sites import Site
from nested_core.training.base_model import TextConditions
from nested_core.training.nested_attention import NestedSubjects

from ..training.encoder import encoder_config, train_encoder
from ..training.host import AnySubjects, TinyWorldHost
from .decoupled import image_attention
from .encoders import DECOUPLED, NESTED, Ablation
from .ways import WAYS


@dataclass(frozen=True, eq=False)
class DecoupledSubjects:
    """What they add is an attention to the image alone."""

    keys_values: Mapping[str, tuple[Tensor, Tensor]]

    def delta(self, site: Site, query: Tensor, _text_key: Tensor, _text_value: Tensor) -> Tensor:
        """The second term of decoupled cross-attention, `[batch, heads, pixels, head_dim]`."""
        return image_attention(query, *self.keys_values[site.path])


class AblationHost(TinyWorldHost):
    """One of the tiny world's base models, told of subjects in an ablation's way."""

    def __init__(self, weights: Path, ablation: Ablation, name: str = models.UNET) -> None:
        super().__init__(weights, name)
        self.ablation = ablation

    def predict(
        self, noisy: Tensor, times: Tensor, text: TextConditions, subjects: AnySubjects | None
    ) -> Tensor:
        if isinstance(subjects, NestedSubjects):
            subjects = self._told(subjects)
        return super().predict(noisy, times, text, subjects)

    def _told(self, subjects: NestedSubjects) -> AnySubjects:
        way, sites = self.ablation.way, self.ablation.sites
        if way == NESTED and not sites:
            return subjects
        if self.model.name == models.UNET:
            assert way == DECOUPLED, "the only other way of the UNet"
            return DecoupledSubjects(subjects.keys_values)
        return WAYS[way](subjects, sites=sites)


def train_ablation(
    ablation: Ablation, budget: Mapping[str, object], weights: Path, file: Path, name: str
) -> None:
    """Writes the encoder's file when the last step is done. Asked to stop, it ends the program."""
    run = file.with_suffix("")
    settings: dict[str, Any] = {**budget, **ablation.settings}
    status = train_encoder(
        encoder_config(run, name, **settings), AblationHost(weights, ablation, name)
    )
    if status:
        sys.exit(status)
    unfinished = file.with_suffix(".unfinished")
    shutil.copyfile(run / models.ENCODER_FILE, unfinished)
    os.replace(unfinished, file)
