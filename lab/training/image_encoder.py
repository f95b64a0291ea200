"""Trains the image encoder: it looks at a photograph and says which colours the subject's parts have,
and of every patch which part it shows.

That is its whole education. The encoder for Nested Attention later reads its patch features, as
those of CLIP are read, and never changes them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_world import models, world
from torch import Tensor, nn
from torch.nn import functional

from nested_core.preprocess import clip_pixels
from nested_core.training.optimiser import learning_rate_factor, set_learning_rate

from .host import vision_model

log = logging.getLogger(__name__)
_MOST_PARTS = max(len(parts) for parts in world.PARTS.values())


@dataclass(frozen=True)
class VisionTraining:
    """Settings of the image encoder's run."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Examples:
    """Photographs and the answers.

    Attributes:
        pixels: as the image encoder wants them, `[batch, 3, 32, 32]`.
        kinds: index of the kind, `[batch]`.
        colours: of the parts, RGB in [0, 1], `[batch, parts, 3]`.
        patch_parts: 0 for none, else 1 + the part's number among all kinds' parts, `[batch, patches]`.
    """

    pixels: Tensor
    kinds: Tensor
    colours: Tensor
    patch_parts: Tensor

    def patch_owner(self) -> tuple[Tensor, Tensor]:
        """Row of the batch and number of the part that each patch shows."""
        rows = torch.arange(len(self.kinds))[:, None].expand_as(self.patch_parts)
        return rows, (self.patch_parts - 1).clamp_min(0) % _MOST_PARTS


class Describer(nn.Module):
    """The image encoder and what it is asked.

    Of the whole picture: the kind of the subject and a colour for each of its parts. Of every patch,
    by its penultimate feature: which part it shows mostly, if any, and that part's colour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vision = vision_model()
        whole, patch = models.VISION_CONFIG["projection_dim"], models.VISION_CONFIG["hidden_size"]
        self.kind = nn.Linear(whole, len(world.KINDS))
        self.colours = nn.Linear(whole, len(world.KINDS) * _MOST_PARTS * 3)
        self.patch_part = nn.Linear(patch, len(world.KINDS) * _MOST_PARTS + 1)
        self.patch_colour = nn.Linear(patch, 3)

    def loss(self, asked: Examples) -> Tensor:
        """Cross entropy of names, and ten times the mean squared error of colours."""
        outputs = self.vision(pixel_values=asked.pixels, output_hidden_states=True)
        seen, patches = outputs.image_embeds, outputs.hidden_states[-2][:, 1:]
        answers = self.colours(seen).view(len(seen), len(world.KINDS), _MOST_PARTS, 3)
        own = answers[torch.arange(len(seen)), asked.kinds]
        shows = asked.patch_parts > 0
        target = asked.colours[asked.patch_owner()]
        return (
            functional.cross_entropy(self.kind(seen), asked.kinds)
            + functional.cross_entropy(self.patch_part(patches).mT, asked.patch_parts)
            + 10.0 * functional.mse_loss(own, asked.colours)
            + 10.0 * functional.mse_loss(self.patch_colour(patches)[shows], target[shows])
        )


def examples(seed: int, first: int, count: int) -> Examples:
    """Samples `first` to `first + count` of the image encoder's stream."""
    pictures, kinds, colours, parts = [], [], [], []
    for index in range(first, first + count):
        draws = np.random.default_rng([seed, 2, index])
        picture, subject = world.reference_picture(draws, world.random_identity(draws))
        kind = world.KINDS.index(subject.identity.kind)
        pictures.append(picture)
        kinds.append(kind)
        colours.append(list(subject.identity.colours.values()))
        parts.append(_patch_parts(world.part_map(subject), kind))
    pixels = clip_pixels(torch.from_numpy(np.stack(pictures)), world.SIZE)
    return Examples(
        pixels, torch.tensor(kinds), torch.tensor(colours), torch.tensor(np.stack(parts))
    )


def _patch_parts(part_map: NDArray[np.int64], kind: int) -> NDArray[np.int64]:
    """The part that most of a patch's pixels show, where half of them show a part at all."""
    side = models.VISION_CONFIG["patch_size"]
    grid = world.SIZE // side
    patches = part_map.reshape(grid, side, grid, side).swapaxes(1, 2).reshape(grid**2, side**2)
    counts = (patches[:, :, None] == np.arange(_MOST_PARTS)).sum(axis=1)
    shown = counts.sum(axis=1) * 2 >= side**2
    return np.where(shown, 1 + kind * _MOST_PARTS + counts.argmax(axis=1), 0)


def train_vision(settings: VisionTraining, folder: Path) -> None:
    """Writes `folder/clip_vision.safetensors`; minutes on a CPU, so it is not resumable."""
    torch.manual_seed(settings.seed)
    describer = Describer()
    optimiser = torch.optim.AdamW(describer.parameters(), settings.learning_rate)
    for step in range(settings.steps):
        factor = learning_rate_factor("cosine", step, settings.warmup_steps, settings.steps)
        set_learning_rate(optimiser, settings.learning_rate * factor)
        asked = examples(settings.seed, step * settings.batch_size, settings.batch_size)
        loss = describer.loss(asked)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (step + 1) % 100 == 0:
            log.info("image encoder: step %d, loss %.4f", step + 1, loss.item())
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in describer.vision.state_dict().items()}
    save_file(weights, folder / models.VISION_FILE)
