"""The report's figures; None where their methods were not measured."""

from __future__ import annotations

from PIL import Image
from tiny_world import world

from ..drawing.methods import SHIPPED, STRENGTHS, at_strength
from .charts import Curve, Row, curves_chart, rows_chart
from .examples import example_sheet
from .results import NONE, Results
from .sections import measured_ablations, measured_curves, measured_main
from .tables import gain, of_method

_SUBJECT_AND_BACKGROUND = ("subject_psnr", "background_psnr")


def _styles_figure(results: Results) -> Image.Image | None:
    names = measured_main(results)
    if SHIPPED not in names:
        return None
    rows = []
    for style in world.STYLES:
        rows.append(Row(style))
        for colour, name in enumerate(names):
            both = [of_method(results, name, figure, style) for figure in _SUBJECT_AND_BACKGROUND]
            rows.append(Row(name, both, colour))
    return rows_chart(rows, ("subject, dB", "background, dB"))


def _ablations_figure(results: Results) -> Image.Image | None:
    names = measured_ablations(results)
    if not names or NONE not in results.scores:
        return None
    rows = [
        Row(
            name, [gain(results, name, figure) for figure in _SUBJECT_AND_BACKGROUND], _colour(name)
        )
        for name in names
    ]
    return rows_chart(rows, ("subject: gain over none, dB", "background: change, dB"))


def _colour(name: str) -> int:
    return {"one_token": 1, "decoupled": 4}.get(name, 3 if "scale" in name else 2)


def _curve_figure(results: Results) -> Image.Image | None:
    curves = [
        Curve(
            name,
            [
                (
                    f"{strength:g}",
                    of_method(results, at_strength(name, strength), "background_psnr"),
                    of_method(results, at_strength(name, strength), "subject_psnr"),
                )
                for strength in STRENGTHS
            ],
            colour,
        )
        for colour, name in zip((2, 3, 4), measured_curves(results), strict=False)
    ]
    return curves_chart(curves, "background, dB", "subject, dB") if curves else None


FIGURES = {
    "styles": _styles_figure,
    "examples": example_sheet,
    "curve": _curve_figure,
    "ablations": _ablations_figure,
}
