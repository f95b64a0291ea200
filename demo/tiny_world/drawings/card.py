"""The picture of a template: what goes in, the prompt, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..sheet import ACCENT, INK, PAPER, enlarged, font, wrapped, write

SIZE = (512, 464)
_MARGIN, _GAP = 16, 12
_RESULT = 328  # a side of what was drawn
_LABEL, _PROMPT, _CAPTION = 20, 24, 17  # sizes of letters
_LINE = 30
# The part of the sheet of *Show Maps* that has the maps: what stands around them is too small to read.
_MAPS = (0.0, 0.2, 1.0, 0.82)  # left, top, right, bottom
_SOFT = (104, 100, 114)  # darker than the sheet's: these pictures are seen small


@dataclass(frozen=True)
class Card:
    """What a picture shows.

    Attributes:
        shown: photographs, by what is written under them.
        prompt: nothing where the template has none.
        drawn: what came out; None for a template that draws nothing.
        sheet: what *Show Maps* made of it.
        file: the name of a subject's file that goes in, or, where nothing is drawn, comes out.
        caption: who drew it.
    """

    shown: Mapping[str, Image.Image]
    prompt: str
    drawn: Image.Image | None
    sheet: Image.Image | None
    file: str | None
    caption: str


def card_picture(card: Card) -> Image.Image:
    image = Image.new("RGB", SIZE, PAPER)
    result = _RESULT - (_maps(card.sheet).height + _GAP if card.sheet else 0)
    left = SIZE[0] - _MARGIN - result
    _paste_inputs(image, card, left - _MARGIN - _GAP, result)
    if card.drawn:
        image.paste(enlarged(card.drawn, result), (left, _MARGIN))
    elif card.file:
        _draw_file(image, (left, _MARGIN, left + result, _MARGIN + result), card.file)
    top = _MARGIN + result + _GAP
    if card.sheet:
        maps = _maps(card.sheet)
        image.paste(maps, (_MARGIN, top))
        top += maps.height + _GAP
    pen = ImageDraw.Draw(image)
    for line in wrapped(card.prompt, _PROMPT, SIZE[0] - 2 * _MARGIN):
        write(pen, (_MARGIN, top), line, _PROMPT)
        top += _LINE
    pen.text((_MARGIN, SIZE[1] - _MARGIN), card.caption, _SOFT, font(_CAPTION), anchor="ls")
    return image


def _maps(sheet: Image.Image) -> Image.Image:
    left, top, right, bottom = _MAPS
    width, height = sheet.size
    maps = sheet.crop(
        (int(left * width), int(top * height), int(right * width), int(bottom * height))
    )
    width = SIZE[0] - 2 * _MARGIN
    return maps.resize((width, width * maps.height // maps.width), Image.Resampling.LANCZOS)


def _paste_inputs(image: Image.Image, card: Card, width: int, height: int) -> None:
    """The photographs at the left, or the file in their place."""
    pen = ImageDraw.Draw(image)
    if not card.shown:
        assert card.file is not None
        _draw_file(image, (_MARGIN, _MARGIN, _MARGIN + width, _MARGIN + width), card.file)
        return
    # Under one another, or side by side over the maps, where there is width and no height.
    across = card.sheet is not None
    count, label = len(card.shown), _LABEL + _GAP
    side = min(width, (height - count * label) // count)
    if across:
        side = min(height - label, (width - (count - 1) * _GAP) // count)
    x, y = _MARGIN, _MARGIN
    for text, picture in card.shown.items():
        image.paste(enlarged(picture, side), (x, y))
        colour = ACCENT if text.startswith("<") else _SOFT
        pen.text((x + side // 2, y + side + label // 2), text, colour, font(_LABEL), anchor="mm")
        x, y = (x + side + _GAP, y) if across else (x, y + side + label)


def _draw_file(image: Image.Image, box: tuple[int, int, int, int], name: str) -> None:
    """A sheet of paper with a file's name."""
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = box
    pen.rectangle(box, (255, 255, 255), _SOFT, 2)
    stem, _, ending = name.partition(".")
    middle = ((left + right) // 2, (top + bottom) // 2)
    size = _LABEL if right - left < _RESULT else 2 * _LABEL
    pen.text(middle, stem, INK, font(size), anchor="md")
    pen.text(middle, f".{ending}", _SOFT, font(round(0.8 * size)), anchor="ma")
