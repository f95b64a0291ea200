"""Figures of pictures with several subjects: how well each is kept, and how much they are mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ... import world
from ...prompts import psnr
from .scenes import Company

# Squared distance of two colours from which on it can be told which of them a pixel has.
_TELLING = 0.05


@dataclass(frozen=True)
class Figures:
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


def measure(company: Company, picture: world.Picture) -> Figures:
    """Against the nearest right answer, where the prompt leaves open who stands where."""
    return max(
        (_measure(each, picture) for each in company.arrangements()),
        key=lambda figures: figures.subject_psnr,
    )


def _measure(company: Company, picture: world.Picture) -> Figures:
    subjects = range(len(company.placed))
    right = company.right
    everybody = np.logical_or.reduce([world.subject_mask(each) for each in company.placed])
    return Figures(
        float(np.mean([psnr(picture, right, company.visible(each)) for each in subjects])),
        psnr(picture, right, ~everybody),
        _mean([_towards_others(company, each, picture) for each in subjects]),
        _mean([_towards_stranger(company, each, picture) for each in subjects]),
    )


def _towards_others(company: Company, index: int, picture: world.Picture) -> float:
    others = [each.identity for number, each in enumerate(company.placed) if number != index]
    return _mean([_projection(company, index, each, picture) for each in others])


def _towards_stranger(company: Company, index: int, picture: world.Picture) -> float:
    # Of the kind of a subject that is there, or a dog's stranger would be measured against people.
    others = [each.identity for number, each in enumerate(company.placed) if number != index]
    draws = np.random.default_rng([*company.noise_seed, index])
    strangers = [world.random_identity(draws, each.kind) for each in others]
    return _mean([_projection(company, index, each, picture) for each in strangers])


def _projection(
    company: Company, index: int, other: world.Identity, picture: world.Picture
) -> float:
    """Towards `other` in the subject's place; not a number where the two look alike there."""
    swapped = replace(company.placed[index], identity=other)
    cast = [swapped if number == index else each for number, each in enumerate(company.placed)]
    region = company.visible(index) & world.subject_mask(swapped)
    right = company.right.astype(np.float64)[region]
    way = world.draw(cast, company.scene)[region] - right
    length = np.square(way).sum(axis=-1)
    telling = length > _TELLING
    if not telling.any():
        return float("nan")
    error = picture[region] - right
    gone = (error * way).sum(axis=-1)[telling] / length[telling]
    return float(np.maximum(gone, 0.0).mean())


def _mean(values: list[float]) -> float:
    """Of those that are numbers."""
    known: NDArray[np.float64] = np.array([each for each in values if not np.isnan(each)])
    return float(known.mean()) if len(known) else float("nan")
