"""Two kinds of charts, drawn with Pillow: intervals in rows, and curves of one figure over another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from tiny_world.sheet import INK, PAPER, SOFT, font

from ..measures.scores import Estimate

_GRID = (226, 223, 215)
COLOURS = ((120, 116, 128), (46, 104, 168), (196, 72, 24), (34, 130, 92), (130, 70, 150))
_TEXT, _SMALL, _RADIUS, _WIDTH = 26, 22, 8, 4

Point = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A label and an estimate for each panel; a row without estimates is a heading."""

    label: str
    estimates: Sequence[Estimate] = ()
    colour: int = 0


@dataclass(frozen=True)
class Curve:
    """Points of two estimates, across and up, each with a label."""

    label: str
    points: Sequence[tuple[str, Estimate, Estimate]]
    colour: int = 0


def rows_chart(rows: Sequence[Row], panels: Sequence[str]) -> Image.Image:
    """Panels side by side, each with its own scale; a dot and its 95 % interval in each row."""
    labels, panel, line, top, gap = 330, 560, 42, 70, 50
    height = top + line * len(rows) + 70
    image, pen = _canvas(labels + len(panels) * (panel + gap), height)
    for index, row in enumerate(rows):
        place = (24 if row.estimates else 12, top + line * index + line // 2)
        pen.text(place, row.label, INK if row.estimates else SOFT, font(_TEXT), anchor="lm")
    for number, title in enumerate(panels):
        left = labels + number * (panel + gap)
        pen.text((left, 20), title, INK, font(_TEXT))
        low, high = _range([row.estimates[number] for row in rows if row.estimates])
        across = _scale(low, high, left + 20, left + panel - 20)
        _vertical_grid(pen, across, (low, high), (top, height - 60))
        for index, row in enumerate(rows):
            if row.estimates:
                middle = top + line * index + line // 2
                estimate, colour = row.estimates[number], COLOURS[row.colour]
                ends = [(across(estimate.low), middle), (across(estimate.high), middle)]
                pen.line(ends, colour, _WIDTH)
                _dot(pen, (across(estimate.mean), middle), colour)
    return image


def curves_chart(curves: Sequence[Curve], across_label: str, up_label: str) -> Image.Image:
    """One figure over the other; bars show the 95 % intervals."""
    width, height, left, top, right, bottom = 1400, 900, 120, 70, 1110, 790
    image, pen = _canvas(width, height)
    across_range = _range([across for curve in curves for _, across, _ in curve.points])
    up_range = _range([up for curve in curves for _, _, up in curve.points])
    across = _scale(*across_range, left + 20, right - 20)
    up = _scale(*up_range, bottom - 20, top + 20)
    _vertical_grid(pen, across, across_range, (top, bottom))
    for tick in _ticks(*up_range):
        pen.line([(left, up(tick)), (right, up(tick))], _GRID, 2)
        pen.text((left - 12, up(tick)), f"{tick:g}", SOFT, font(_SMALL), anchor="rm")
    pen.text((left, 20), up_label, INK, font(_TEXT))
    pen.text((right, bottom + 50), across_label, INK, font(_TEXT), anchor="ra")
    for number, curve in enumerate(curves):
        _draw_curve(pen, curve, across, up)
        place = (right + 40, top + 40 + 44 * number)
        _dot(pen, place, COLOURS[curve.colour])
        pen.text((place[0] + 24, place[1]), curve.label, INK, font(_TEXT), anchor="lm")
    return image


def _draw_curve(
    pen: ImageDraw.ImageDraw,
    curve: Curve,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> None:
    colour = COLOURS[curve.colour]
    places = [(across(x.mean), up(y.mean)) for _, x, y in curve.points]
    pen.line(places, colour, _WIDTH)
    for (label, x, y), place in zip(curve.points, places, strict=True):
        pen.line([(across(x.low), place[1]), (across(x.high), place[1])], colour, 2)
        pen.line([(place[0], up(y.low)), (place[0], up(y.high))], colour, 2)
        _dot(pen, place, colour)
        pen.text((place[0] + 14, place[1] - 8), label, colour, font(_SMALL), anchor="lb")


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def _vertical_grid(
    pen: ImageDraw.ImageDraw,
    across: Callable[[float], float],
    ends: tuple[float, float],
    rows: tuple[int, int],
) -> None:
    for tick in _ticks(*ends):
        colour = SOFT if tick == 0.0 else _GRID
        pen.line([(across(tick), rows[0]), (across(tick), rows[1])], colour, 2)
        place = (across(tick), rows[1] + 8)
        pen.text(place, f"{tick:g}", SOFT, font(_SMALL), anchor="ma")


def _dot(pen: ImageDraw.ImageDraw, middle: Point, colour: tuple[int, int, int]) -> None:
    x, y = middle
    pen.ellipse([x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS], colour)


def _range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, and a little more."""
    low = min(estimate.low for estimate in estimates)
    high = max(estimate.high for estimate in estimates)
    margin = max(0.04 * (high - low), 0.05)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """At most about eight round numbers."""
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if (high - low) / s <= 8)
    first, last = -int(-low // step), int(high // step)
    return [round(step * number, 6) for number in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)
