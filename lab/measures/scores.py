"""Figures: how near pictures are to the right ones, and how sure that is.

PSNR is measured picture by picture, from its mean squared error on the subject's pixels or on all
others; the figures are means of those decibels. Intervals hold 95 %, by bootstrap over identities:
the pictures of one identity are not independent, so identities are drawn, not pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_world import world
from tiny_world.prompts import psnr

from ..subjects.held_out import HeldOut, Prompt

ALL = "all"
STYLES = (*world.STYLES, ALL)
_RESAMPLES = 2000

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Of every picture of a method, each `[identities, styles]`.

    Attributes:
        subject_psnr: in dB, on the subject: is it this very one?
        background_psnr: in dB, off the subject: is the prompt obeyed?
        picture_psnr: in dB, of the whole picture.
        style_obeyed: 1 where, among the targets in all styles, the one in the style that was asked
            for is the nearest on the subject's pixels.
    """

    subject_psnr: Values
    background_psnr: Values
    picture_psnr: Values
    style_obeyed: Values

    def first(self, identities: int) -> Scores:
        """Of the first identities alone."""
        return Scores(*(getattr(self, name)[:identities] for name in FIGURES))

    @property
    def identities(self) -> int:
        """How many of them."""
        return len(self.subject_psnr)

    def pictures_in(self, style: str) -> int:
        """How many of a style."""
        return self.identities * (len(world.STYLES) if style == ALL else 1)


FIGURES = tuple(field.name for field in fields(Scores))
SUBJECT_AND_BACKGROUND = FIGURES[:2]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def measure(subjects: Sequence[HeldOut], pictures: NDArray[np.float32]) -> Scores:
    """The scores of pictures `[identities, styles, 32, 32, 3]` in [0, 1]."""
    figures = [
        [_measure(prompt, picture) for prompt, picture in zip(subject.prompts, row, strict=True)]
        for subject, row in zip(subjects, pictures, strict=True)
    ]
    return Scores(*np.moveaxis(np.array(figures), -1, 0))


def _measure(prompt: Prompt, picture: world.Picture) -> tuple[float, ...]:
    target, mask = prompt.target, prompt.mask
    by_style = {style: psnr(picture, prompt.in_style(style).target, mask) for style in world.STYLES}
    return (
        psnr(picture, target, mask),
        psnr(picture, target, ~mask),
        psnr(picture, target, np.ones_like(mask)),
        float(max(by_style, key=by_style.__getitem__) == prompt.scene.style),
    )


def of_style(values: Values, style: str) -> Values:
    """One number per identity: of this style, or the mean of all."""
    return values.mean(axis=1) if style == ALL else values[:, world.STYLES.index(style)]


def estimate(per_identity: Values) -> Estimate:
    """The mean over identities, by percentiles of resampled means."""
    draws = np.random.default_rng(0)
    count = len(per_identity)
    means = per_identity[draws.integers(0, count, (_RESAMPLES, count))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(per_identity.mean()), float(low), float(high))


def difference(first: Scores, second: Scores, figure: str, style: str = ALL) -> Estimate:
    """First minus second on the identities that both drew, identity by identity."""
    count = min(first.identities, second.identities)
    minuend, subtrahend = (
        of_style(getattr(scores.first(count), figure), style) for scores in (first, second)
    )
    return estimate(minuend - subtrahend)


def rows(method: str, scores: Scores, none: Scores | None) -> list[dict[str, Any]]:
    """A row for each style and one for all of them together, for a JSON file.

    Args:
        none: the scores without personalisation, for the gains over it.
    """
    return [_row(method, style, scores, none) for style in STYLES]


def _row(method: str, style: str, scores: Scores, none: Scores | None) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "style": style, "n": scores.pictures_in(style)}
    for figure in FIGURES:
        row |= interval_fields(figure, estimate(of_style(getattr(scores, figure), style)))
    if none is not None:
        for figure in SUBJECT_AND_BACKGROUND:
            row |= interval_fields(f"{figure}_gain", difference(scores, none, figure, style))
    return row


def interval_fields(name: str, interval: Estimate) -> dict[str, float]:
    """The three numbers for a JSON file."""
    return {
        name: round(interval.mean, 4),
        f"{name}_low": round(interval.low, 4),
        f"{name}_high": round(interval.high, 4),
    }
