"""A picture of pictures: what each method makes of the same order. The orders are not chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .. import world
from ..sheet import to_image
from .charts import font
from .orders import Order
from .results import Results

_SHOWN = ("none", "named", "one_token", "decoupled", "nested_16", "shipped")
_CELL, _GAP, _CAPTION, _HEADING = 128, 10, 30, 40
_PAPER, _INK, _SOFT = (251, 250, 247), (38, 36, 48), (120, 116, 128)


def example_sheet(results: Results) -> Image.Image | None:
    """Of the first person and the first dog, in every style."""
    shown = [name for name in _SHOWN if name in results.scores]
    if not shown:
        return None
    fewest = min(results.scores[name].identities for name in shown)
    cast = results.evaluation.sitters(fewest)
    kinds = [sitter.identity.kind for sitter in cast]
    indices = [kinds.index(kind) for kind in world.KINDS if kind in kinds]
    drawn = [results.pictures(name, fewest) for name in shown]
    lines = [
        (
            order,
            [cast[index].photograph, order.right, *(each[index][number] for each in drawn)],
        )
        for index in indices
        for number, order in enumerate(cast[index].orders)
    ]
    return _sheet(["photograph", "right answer", *shown], lines)


def _sheet(
    headings: Sequence[str], lines: Sequence[tuple[Order, Sequence[world.Picture]]]
) -> Image.Image:
    column, line = _CELL + _GAP, _CELL + _CAPTION + _GAP
    size = (_GAP + len(headings) * column, _HEADING + len(lines) * line)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, heading in enumerate(headings):
        middle = _GAP + number * column + _CELL // 2
        pen.text((middle, _HEADING // 2), heading, _SOFT, font(17), anchor="mm")
    for row, (order, pictures) in enumerate(lines):
        top = _HEADING + row * line
        pen.text((_GAP, top + 4), order.caption("<subject>"), _INK, font(17))
        for number, picture in enumerate(pictures):
            cell = to_image(np.asarray(picture)).resize((_CELL, _CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (_GAP + number * column, top + _CAPTION))
    return sheet
