"""The report's figures; None where their methods were not measured."""

from __future__ import annotations

from PIL import Image
from tiny_world import world

from ..drawing.catalogue import STRENGTHS, at_strength
from ..drawing.methods import SHIPPED
from ..measures.scores import SUBJECT_AND_BACKGROUND
from .charts import Curve, Row, curves_chart, rows_chart
from .results import NONE, Results
from .sections import MAIN_NAMES, ablation_names, measured_curves
from .tables import gain, of_method


def styles(results: Results) -> Image.Image | None:
    """The main methods, style by style."""
    names = results.measured(MAIN_NAMES)
    if SHIPPED not in names:
        return None
    rows = []
    for style in world.STYLES:
        rows.append(Row(style))
        for colour, name in enumerate(names):
            both = [of_method(results, name, figure, style) for figure in SUBJECT_AND_BACKGROUND]
            rows.append(Row(name, both, colour))
    return rows_chart(rows, ("subject, dB", "background, dB"))


def ablations(results: Results) -> Image.Image | None:
    """Their gains."""
    names = results.measured(ablation_names(results))
    if not names or NONE not in results.scores:
        return None
    rows = []
    for name in names:
        both = [gain(results, name, figure) for figure in SUBJECT_AND_BACKGROUND]
        rows.append(Row(name, both, _colour(name)))
    return rows_chart(rows, ("subject: gain over none, dB", "background: change, dB"))


def _colour(name: str) -> int:
    if name.startswith(("decoupled", "joined")):
        return 4
    return {"one_token": 1}.get(name, 3 if "scale" in name else 2)


def curve(results: Results) -> Image.Image | None:
    """The subject over the background, as the strength changes."""
    curves = []
    for colour, name in zip((2, 3, 4, 1), measured_curves(results), strict=False):
        points = []
        for strength in STRENGTHS:
            method = at_strength(name, strength)
            subject, background = (
                of_method(results, method, figure) for figure in SUBJECT_AND_BACKGROUND
            )
            points.append((f"{strength:g}", background, subject))
        curves.append(Curve(name, points, colour))
    return curves_chart(curves, "background, dB", "subject, dB") if curves else None
