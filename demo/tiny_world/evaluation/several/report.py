"""What several subjects in a picture come to: rows for a file, a section and a figure for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...sheet import to_image
from ..charts import font
from ..running import Evaluation
from ..scores import Estimate, estimate
from ..tables import plain, signed, table
from .bleed import Figures, measure
from .drawing import WAYS, Drawings
from .scenes import SETTINGS

PLAIN, SEPARATED, BEST = "nested", "nested, separation", "nested, masks and separation"
_FIGURES = tuple(Figures.__dataclass_fields__)
_SHOWN = ("decoupled", PLAIN, "nested, masks", SEPARATED)
_CELL, _GAP, _HEADING, _PICTURES = 112, 8, 40, 4
_PAPER, _INK, _SOFT = (251, 250, 247), (38, 36, 48), (120, 116, 128)

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SeveralResults:
    """Figures `[companies]` by setting, way and name."""

    drawings: Drawings
    figures: Mapping[tuple[str, str, str], Values]

    def of(self, setting: str, way: str, figure: str) -> Values:
        """Pictures in which nothing can be told are not numbers."""
        return self.figures[setting, way, figure]

    def estimate(self, setting: str, way: str, figure: str) -> Estimate:
        """The mean and its interval."""
        values = self.of(setting, way, figure)
        return estimate(values[~np.isnan(values)])

    def rows(self) -> list[dict[str, Any]]:
        """One for each setting and way, for a JSON file."""
        return [
            {
                "method": f"several: {way.name}",
                "style": setting,
                "n": self.drawings.count,
                **{
                    name: round(self.estimate(setting, way.name, name).mean, 4) for name in _FIGURES
                },
            }
            for setting in SETTINGS
            for way in WAYS
        ]


def collect_several(evaluation: Evaluation, count: int) -> SeveralResults:
    """Trains, draws and measures whatever is missing."""
    drawings = Drawings(evaluation, count)
    found: dict[tuple[str, str, str], Values] = {}
    for setting in SETTINGS:
        cast = drawings.companies(setting)
        for way in WAYS:
            pictures = drawings.pictures(setting, way)
            each = [measure(*pair) for pair in zip(cast, pictures, strict=True)]
            for name in _FIGURES:
                found[setting, way.name, name] = np.array([getattr(one, name) for one in each])
    return SeveralResults(drawings, found)


def section(results: SeveralResults) -> str:
    """The page's part on several subjects."""
    parts = [_METHOD.format(count=results.drawings.count)]
    for setting in SETTINGS:
        lines = [
            [
                f"`{way.name}`",
                *(plain(results.estimate(setting, way.name, name)) for name in _FIGURES[:2]),
                *(plain(results.estimate(setting, way.name, name), 3) for name in _FIGURES[2:]),
            ]
            for way in WAYS
        ]
        heading = f"**{setting.capitalize()}**"
        header = ["", "subjects, dB", "background, dB", "bleed", "towards a stranger"]
        parts.append(f"{heading}\n\n{table(header, lines)}")
    parts.append(f"What separation by maps removes:\n\n{_removed(results)}")
    return "\n\n".join(parts)


def _removed(results: SeveralResults) -> str:
    lines = []
    for setting in SETTINGS:
        plain_, separated, best = (
            results.of(setting, way, "bleed") for way in (PLAIN, SEPARATED, BEST)
        )
        excess = float(np.nanmean(plain_ - best))
        removed = float(np.nanmean(plain_ - separated))
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
    "captions (`several/open_base.py`); who stands where is then the model's to decide, and the "
    "nearest of the right answers counts. `decoupled` has the ablations' small budget, all others "
    "are the shipped encoder."
).replace("{steps}", "1,200")


def figure(results: SeveralResults) -> Image.Image:
    """The first scenes of each kind whose places are left open; nothing is picked."""
    settings = [name for name, setting in SETTINGS.items() if not setting.says_places]
    headings = ("photographs", "right answer", *_SHOWN)
    column = _CELL + _GAP
    lines = [(name, index) for name in settings for index in range(_count(results))]
    sheet = Image.new(
        "RGB", (_GAP + len(headings) * column, _HEADING + len(lines) * column), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for number, heading in enumerate(headings):
        middle = _GAP + number * column + _CELL // 2
        words = heading.replace(", ", ",\n")
        pen.multiline_text(
            (middle, _HEADING // 2), words, _SOFT, font(13), anchor="mm", align="center"
        )
    ways = {way.name: way for way in WAYS}
    for row, (setting, index) in enumerate(lines):
        company = results.drawings.companies(setting)[index]
        top = _HEADING + row * column
        half = _CELL // 2
        for number, photograph in enumerate(company.photographs):
            small = to_image(photograph).resize((half, half), Image.Resampling.NEAREST)
            sheet.paste(small, (_GAP + number * half, top + half // 2))
        drawn = [results.drawings.pictures(setting, ways[name])[index] for name in _SHOWN]
        for number, picture in enumerate([company.right, *drawn], start=1):
            cell = to_image(picture).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (_GAP + number * column, top))
    return sheet


def _count(results: SeveralResults) -> int:
    return min(_PICTURES, results.drawings.count)
