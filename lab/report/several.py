"""What several subjects in a picture come to: rows for a file, a section and a figure for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..ablations.open_base import STEPS
from ..drawing.evaluation import Evaluation
from ..drawing.groups import GROUP_METHODS, GroupPictures
from ..measures.bleed import GroupFigures, measure_group
from ..measures.scores import Estimate, estimate
from ..subjects.groups import SETTINGS
from .picture_grid import Line, picture_grid
from .tables import plain, signed, table

PLAIN, SEPARATED, BEST = "nested", "nested, separation", "nested, masks and separation"
_FIGURES = tuple(GroupFigures.__dataclass_fields__)
_SHOWN = ("decoupled", PLAIN, "nested, masks", SEPARATED)
_PICTURES = 4  # of a setting

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupResults:
    """Figures `[prompts]` by setting, method and name."""

    drawn: GroupPictures
    figures: Mapping[tuple[str, str, str], Values]

    def of(self, setting: str, method: str, figure: str) -> Values:
        """Pictures in which nothing can be told are not numbers."""
        return self.figures[setting, method, figure]

    def estimate(self, setting: str, method: str, figure: str) -> Estimate:
        """The mean and its interval."""
        values = self.of(setting, method, figure)
        return estimate(values[~np.isnan(values)])

    def rows(self) -> list[dict[str, Any]]:
        """One for each setting and method, for a JSON file."""
        return [
            {
                "method": f"several: {method.name}",
                "style": setting,
                "n": self.drawn.count,
                **{
                    figure: round(self.estimate(setting, method.name, figure).mean, 4)
                    for figure in _FIGURES
                },
            }
            for setting in SETTINGS
            for method in GROUP_METHODS
        ]


def collect_groups(evaluation: Evaluation, count: int) -> GroupResults:
    """Trains, draws and measures whatever is missing."""
    drawn = GroupPictures(evaluation, count)
    figures: dict[tuple[str, str, str], Values] = {}
    for setting in SETTINGS:
        for method in GROUP_METHODS:
            pictures = zip(drawn.prompts(setting), drawn.pictures(setting, method), strict=True)
            measured = [measure_group(prompt, picture) for prompt, picture in pictures]
            for figure in _FIGURES:
                values = [getattr(of_picture, figure) for of_picture in measured]
                figures[setting, method.name, figure] = np.array(values)
    return GroupResults(drawn, figures)


def group_section(results: GroupResults) -> str:
    """The page's part on several subjects."""
    parts = [_METHOD.format(count=results.drawn.count, steps=f"{STEPS:,}")]
    for setting in SETTINGS:
        lines = [
            [
                f"`{method.name}`",
                *(plain(results.estimate(setting, method.name, name)) for name in _FIGURES[:2]),
                *(plain(results.estimate(setting, method.name, name), 3) for name in _FIGURES[2:]),
            ]
            for method in GROUP_METHODS
        ]
        heading = f"**{setting.capitalize()}**"
        header = ["", "subjects, dB", "background, dB", "bleed", "towards a stranger"]
        parts.append(f"{heading}\n\n{table(header, lines)}")
    parts.append(f"What separation by maps removes:\n\n{_removed(results)}")
    return "\n\n".join(parts)


def _removed(results: GroupResults) -> str:
    lines = []
    for setting in SETTINGS:
        mixed, separated, best = (
            results.of(setting, method, "bleed") for method in (PLAIN, SEPARATED, BEST)
        )
        excess = float(np.nanmean(mixed - best))
        removed = float(np.nanmean(mixed - separated))
        gained = results.of(setting, SEPARATED, "subject_psnr") - results.of(
            setting, PLAIN, "subject_psnr"
        )
        share = "no bleed to remove" if excess < 0.1 else f"{100 * removed / excess:.0f} %"
        lines.append([setting, f"{excess:.3f}", f"{removed:.3f}", share, signed(estimate(gained))])
    return table(
        ["", "bleed above that with masks and separation", "removed", "share", "subjects, dB"],
        lines,
    )


_METHOD = (
    "Scenes of two and three subjects, {count} of each kind, in all styles. *Bleed*: over a subject's "
    "visible pixels, the mean of max(0, the projection of the picture's error on the way to what "
    "another subject of the picture would look like there); 1 is that other one altogether. Noise and "
    "pale colours alone give about 0.1, which the same measure *towards a stranger* shows. Masks by "
    "hand are the subjects' boxes.\n\n"
    "The shipped base model has learned that captions say who stands where, and then there is next "
    "to nothing to remove. So there are scenes in which the prompt says `a photo in the city, <anna>, "
    "<rex>` and no more, on a base model that has been trained on for {steps} steps with such "
    "captions (`lab/ablations/open_base.py`); who stands where is then the model's to decide, and the "
    "nearest of the right answers counts. `decoupled` has the ablations' small budget, all others "
    "are the shipped encoder."
)


def group_figure(results: GroupResults) -> Image.Image:
    """The first prompts of each setting whose places are left open; nothing is picked."""
    methods = [method for method in GROUP_METHODS if method.name in _SHOWN]
    lines = []
    for name, setting in SETTINGS.items():
        if setting.says_places:
            continue
        drawn = [results.drawn.pictures(name, method) for method in methods]
        for index, prompt in enumerate(results.drawn.prompts(name)[:_PICTURES]):
            pictures = [prompt.target, *(pictures[index] for pictures in drawn)]
            lines.append(Line(prompt.photographs, pictures))
    headings = ["photographs", "right answer", *(method.name for method in methods)]
    return picture_grid(headings, lines, cell=112)
