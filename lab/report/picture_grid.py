"""A picture of pictures: a line for each prompt, a column for each way of drawing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from tiny_world.sheet import INK, PAPER, SOFT, enlarged, font, to_image
from tiny_world.world import Picture

_GAP, _HEADING = 10, 44


@dataclass(frozen=True)
class Line:
    """The photographs, which share the first cell, and the pictures behind them; a caption above."""

    photographs: Sequence[Picture]
    pictures: Sequence[Picture]
    caption: str = ""


def picture_grid(headings: Sequence[str], lines: Sequence[Line], cell: int) -> Image.Image:
    """Cells of so many pixels; the first heading is that of the photographs."""
    space = 30 if any(line.caption for line in lines) else 0
    column, height = cell + _GAP, cell + space + _GAP
    size = (_GAP + len(headings) * column, _HEADING + len(lines) * height)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, heading in enumerate(headings):
        middle = (_GAP + number * column + cell // 2, _HEADING // 2)
        words = heading.replace(", ", ",\n")
        pen.multiline_text(middle, words, SOFT, font(cell // 8), anchor="mm", align="center")
    for row, line in enumerate(lines):
        top = _HEADING + row * height
        pen.text((_GAP, top + 4), line.caption, INK, font(cell // 8))
        top += space
        side = cell // len(line.photographs)
        for number, photograph in enumerate(line.photographs):
            corner = (_GAP + number * side, top + (cell - side) // 2)
            sheet.paste(enlarged(to_image(photograph), side), corner)
        for number, picture in enumerate(line.pictures, start=1):
            sheet.paste(enlarged(to_image(picture), cell), (_GAP + number * column, top))
    return sheet
