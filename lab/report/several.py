"""What several subjects in a picture come to: the section and the figure of the page."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..ablations.encoders import ablations_of, steps_of
from ..ablations.open_base import STEPS
from ..drawing.catalogue import catalogue
from ..measures.bleed import FIGURES
from ..measures.scores import estimate
from ..subjects.groups import SETTINGS
from .picture_grid import Line, picture_grid
from .results import GroupResults, Results
from .tables import plain, signed, table

PLAIN, SEPARATED, BEST = "nested", "nested, separation", "nested, masks and separation"
_SHOWN = ("decoupled", "decoupled_long", PLAIN, "nested, masks", SEPARATED)
_PICTURES = 4  # of a setting


def several(results: Results) -> str:
    """The page's part on several subjects."""
    found = results.several
    if found is None:
        return ""
    parts = [_METHOD.format(count=found.count, steps=f"{STEPS:,}", small=_budgets(found))]
    header = ["", "subjects, dB", "background, dB", "bleed", "towards a stranger"]
    for setting in SETTINGS:
        lines = []
        for method in catalogue(found.evaluation.model).several:
            figures = [found.estimate(setting, method.name, figure) for figure in FIGURES]
            cells = [
                plain(value, digits) for value, digits in zip(figures, (2, 2, 3, 3), strict=True)
            ]
            lines.append([f"`{method.name}`", *cells])
        parts.append(f"**{setting.capitalize()}**\n\n{table(header, lines)}")
    parts.append(f"What separation by maps removes:\n\n{_removed(found)}")
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


def _budgets(results: GroupResults) -> str:
    """Which methods were trained for less than the shipped encoder."""
    evaluation = results.evaluation
    ablations, texts = ablations_of(evaluation.model), []
    for method in catalogue(evaluation.model).several:
        ablation = ablations.get(method.encoder or "")
        if ablation is not None:
            steps = steps_of(ablation, evaluation.budget)
            texts.append(f"`{method.name}` was trained for {steps:,} steps")
    return ", ".join(texts)


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
    "nearest of the right answers counts. {small}, all others are the shipped "
    "encoder."
)


def several_figure(results: Results) -> Image.Image | None:
    """The first prompts of each setting whose places are left open; nothing is picked."""
    found = results.several
    if found is None:
        return None
    several = catalogue(found.evaluation.model).several
    shown = [method for method in several if method.name in _SHOWN]
    lines = []
    for name, setting in SETTINGS.items():
        if setting.says_places:
            continue
        drawn = [found.evaluation.group_pictures(name, method, found.count) for method in shown]
        for index, prompt in enumerate(found.evaluation.groups(name, found.count)[:_PICTURES]):
            pictures = [prompt.target, *(pictures[index] for pictures in drawn)]
            lines.append(Line(prompt.photographs, pictures))
    headings = ["photographs", "right answer", *(method.name for method in shown)]
    return picture_grid(headings, lines, cell=112)
