"""Pictures with several subjects: how well each is kept, and how much they are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from tiny_world import world
from tiny_world.prompts import psnr

from ..subjects.groups import GroupPrompt

# Squared distance of two colours from which on it can be told which of them a pixel has.
_TELLING = 0.05


@dataclass(frozen=True)
class GroupFigures:
    """Of one picture.

    Attributes:
        subject_psnr: in dB, mean over subjects of the PSNR on their visible pixels.
        background_psnr: in dB, off all subjects.
        bleed: over a subject's region, the mean of max(0, the projection of the picture's error on
            the way to what another subject would look like there), 1: that other one altogether.
            Mean over pairs of subjects.
        stranger: the same towards a subject that is not in the picture: what noise and pale colours
            alone come to.
    """

    subject_psnr: float
    background_psnr: float
    bleed: float
    stranger: float


FIGURES = tuple(field.name for field in fields(GroupFigures))


def measure_group(prompt: GroupPrompt, picture: world.Picture) -> GroupFigures:
    """Against the nearest target, where the prompt leaves open who stands where."""
    return max(
        (_measure(arranged, picture) for arranged in prompt.arrangements()),
        key=lambda figures: figures.subject_psnr,
    )


def _measure(prompt: GroupPrompt, picture: world.Picture) -> GroupFigures:
    indices = range(len(prompt.subjects))
    target = prompt.target
    return GroupFigures(
        float(np.mean([psnr(picture, target, prompt.visible(index)) for index in indices])),
        psnr(picture, target, ~prompt.mask),
        _mean([_towards(prompt, index, _others(prompt, index), picture) for index in indices]),
        _mean([_towards(prompt, index, _strangers(prompt, index), picture) for index in indices]),
    )


def _others(prompt: GroupPrompt, index: int) -> list[world.Identity]:
    return [placed.identity for number, placed in enumerate(prompt.subjects) if number != index]


def _strangers(prompt: GroupPrompt, index: int) -> list[world.Identity]:
    # Of the kind of a subject that is there, or a dog's stranger would be measured against people.
    draws = np.random.default_rng([*prompt.noise_seed, index])
    return [world.random_identity(draws, other.kind) for other in _others(prompt, index)]


def _towards(
    prompt: GroupPrompt, index: int, others: Sequence[world.Identity], picture: world.Picture
) -> float:
    return _mean([_projection(prompt, index, other, picture) for other in others])


def _projection(
    prompt: GroupPrompt, index: int, other: world.Identity, picture: world.Picture
) -> float:
    """Towards `other` in the subject's place; not a number where the two look alike there."""
    swapped = replace(prompt.subjects[index], identity=other)
    subjects = [*prompt.subjects[:index], swapped, *prompt.subjects[index + 1 :]]
    region = prompt.visible(index) & world.subject_mask(swapped)
    target = prompt.target.astype(np.float64)[region]
    way = world.draw(subjects, prompt.scene)[region] - target
    length = np.square(way).sum(axis=-1)
    telling = length > _TELLING
    if not telling.any():
        return float("nan")
    error = picture[region] - target
    projected = (error * way).sum(axis=-1)[telling] / length[telling]
    return float(np.maximum(projected, 0.0).mean())


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers."""
    known = np.array(values)[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
