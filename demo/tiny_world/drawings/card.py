"""The picture of a template: what goes in, the prompt, and what came out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIZE = (512, 464)
_MARGIN, _GAP = 16, 12
_RESULT = 328  # a side of what was drawn
_LABEL, _PROMPT, _CAPTION = 20, 24, 17  # sizes of letters
_LINE = 30
# The part of the sheet of *Show Maps* that has the maps: what stands around them is too small to read.
_MAPS = (0.0, 0.2, 1.0, 0.82)  # left, top, right, bottom
_PAPER, _INK, _SOFT, _ACCENT = (251, 250, 247), (38, 36, 48), (104, 100, 114), (196, 72, 24)


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
    image = Image.new("RGB", SIZE, _PAPER)
    result = _RESULT - (_maps(card.sheet).height + _GAP if card.sheet else 0)
    left = SIZE[0] - _MARGIN - result
    _paste_inputs(image, card, left - _MARGIN - _GAP, result)
    if card.drawn:
        image.paste(_enlarged(card.drawn, result), (left, _MARGIN))
    elif card.file:
        _draw_file(image, (left, _MARGIN, left + result, _MARGIN + result), card.file)
    top = _MARGIN + result + _GAP
    if card.sheet:
        maps = _maps(card.sheet)
        image.paste(maps, (_MARGIN, top))
        top += maps.height + _GAP
    pen = ImageDraw.Draw(image)
    for line in _wrapped(card.prompt):
        _write(pen, (_MARGIN, top), line)
        top += _LINE
    pen.text((_MARGIN, SIZE[1] - _MARGIN), card.caption, _SOFT, _font(_CAPTION), anchor="ls")
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
        image.paste(_enlarged(picture, side), (x, y))
        colour = _ACCENT if text.startswith("<") else _SOFT
        pen.text((x + side // 2, y + side + label // 2), text, colour, _font(_LABEL), anchor="mm")
        x, y = (x + side + _GAP, y) if across else (x, y + side + label)


def _draw_file(image: Image.Image, box: tuple[int, int, int, int], name: str) -> None:
    """A sheet of paper with a file's name."""
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = box
    pen.rectangle(box, (255, 255, 255), _SOFT, 2)
    stem, _, ending = name.partition(".")
    middle = ((left + right) // 2, (top + bottom) // 2)
    size = _LABEL if right - left < _RESULT else 2 * _LABEL
    pen.text(middle, stem, _INK, _font(size), anchor="md")
    pen.text(middle, f".{ending}", _SOFT, _font(round(0.8 * size)), anchor="ma")


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """A line of a prompt, its tokens in a colour of their own."""
    x, y = corner
    for part in re.split(r"(<\w+>)", text):
        pen.text((x, y), part, _ACCENT if part.startswith("<") else _INK, _font(_PROMPT))
        x += round(_font(_PROMPT).getlength(part))


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _font(_PROMPT).getlength(longer) > SIZE[0] - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # comes with Pillow
