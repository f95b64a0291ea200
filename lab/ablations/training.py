"""Training the ablations, by the trainer and the settings of the shipped encoder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiny_world import models
from torch import Tensor

from nested_core.sites import Site
from nested_core.training.base_model import TextConditions
from nested_core.training.nested_attention import NestedSubjects, Subjects

from ..training.encoder import encoder_config, train_encoder
from ..training.host import TinyWorldHost
from .decoupled import image_attention
from .encoders import Ablation


@dataclass(frozen=True, eq=False)
class DecoupledSubjects:
    """What they add is an attention to the image alone."""

    keys_values: Mapping[str, tuple[Tensor, Tensor]]

    def delta(self, site: Site, query: Tensor, _text_key: Tensor, _text_value: Tensor) -> Tensor:
        """The second term of decoupled cross-attention, `[batch, heads, pixels, head_dim]`."""
        return image_attention(query, *self.keys_values[site.path])


class DecoupledHost(TinyWorldHost):
    """The tiny world's base model, told of subjects by decoupled cross-attention."""

    def predict(
        self, noisy: Tensor, times: Tensor, text: TextConditions, subjects: Subjects | None
    ) -> Tensor:
        if subjects is not None:
            assert isinstance(subjects, NestedSubjects), "what the trainer hands to every host"
            subjects = DecoupledSubjects(subjects.keys_values)
        return super().predict(noisy, times, text, subjects)


def train_ablation(
    ablation: Ablation, budget: Mapping[str, object], weights: Path, file: Path
) -> None:
    """Writes the encoder's file when the last step is done. Asked to stop, it ends the program."""
    run = file.with_suffix("")
    host = (DecoupledHost if ablation.decoupled else TinyWorldHost)(weights)
    status = train_encoder(encoder_config(run, **{**budget, **ablation.settings}), host)
    if status:
        sys.exit(status)
    unfinished = file.with_suffix(".unfinished")
    shutil.copyfile(run / models.ENCODER_FILE, unfinished)
    os.replace(unfinished, file)
