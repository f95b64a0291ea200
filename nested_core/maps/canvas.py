"""Sheets from small pictures: text, frames, and pictures put beside and under one another.

Everything is an image that knows its size; a sheet is made by putting images together, so nothing
can overlap or be cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..shapes import Float
from .colours import FRAME, INK, PAPER, SOFT, Rgb, kept_in_range, scale_colours

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TITLE, HEADING, TEXT = 22, 17, 14  # type sizes in px
GAP, MARGIN = 12, 32
_BAR_HEIGHT, _TICK = 16, 5

# Pillow's own font has no letters beyond English. A token in another script is drawn with the first
# of these that is installed and has its letters.
_OTHER_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "meiryo.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "wqy-microhei.ttc",
)


def text_line(
    text: str, size: int = TEXT, colour: Rgb = INK, width: int | None = None
) -> Image.Image:
    """One line of text; cut short with an ellipsis where it is wider than `width`."""
    text, font = _drawable(text, size)
    if width is not None:
        text = _shortened(text, font, width)
    line = blank(max(1, round(font.getlength(text)) + 1), round(size * 1.45))
    baseline = round(size * 1.05)
    ImageDraw.Draw(line).text((0, baseline), text, colour, font, anchor="ls")
    return line


def paragraph(text: str, width: int, colour: Rgb = SOFT) -> Image.Image:
    """Text in lines no wider than `width`."""
    font = _default_font(TEXT)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return stack([text_line(line, colour=colour, width=width) for line in lines], gap=0)


def name_line(name: str, note: str, colour: Rgb, width: int) -> Image.Image:
    """A subject's name behind a square of its colour, and a note behind it."""
    side = 12
    swatch = blank(side, 24)
    ImageDraw.Draw(swatch).rectangle((0, 7, side - 1, 7 + side - 1), fill=colour)
    after = text_line(note, colour=SOFT) if note else None
    room = width - side - 8 - (after.width + GAP if after else 0)
    first = text_line(name, HEADING, colour, max(room, 40))
    line = beside([swatch, first], gap=8)
    if after is None:
        return line
    return beside([line, _lowered(after, 4)], gap=GAP)


def framed(
    picture: Float[np.ndarray, "height width 3"], size: tuple[int, int], smooth: bool
) -> Image.Image:
    """A picture at `size` (width, height), inside a hairline."""
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    image = to_image(picture).resize(size, how)
    ImageDraw.Draw(image).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=FRAME)
    return image


def colour_scale(top: float, label: str, clipped: bool = False, width: int = 320) -> Image.Image:
    """The legend of a colour scale from 0 to `top`, with what it measures."""
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(_BAR_HEIGHT, axis=0)
    bar = blank(width, _BAR_HEIGHT + _TICK + 20)
    bar.paste(to_image(scale_colours(ramp)), (0, 0))
    pen = ImageDraw.Draw(bar)
    for share, anchor in ((0.0, "ls"), (0.5, "ms"), (1.0, "rs")):
        x = round(share * (width - 1))
        pen.line((x, _BAR_HEIGHT, x, _BAR_HEIGHT + _TICK), fill=SOFT)
        text = number(share * top) + (" and more" if clipped and share == 1.0 else "")
        pen.text((x, _BAR_HEIGHT + _TICK + 15), text, SOFT, _default_font(TEXT), anchor=anchor)
    return stack([text_line(label), bar], gap=4)


def number(value: float) -> str:
    """Two significant digits at most, never in powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 1 - int(np.floor(np.log10(abs(value)))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def blank(width: int, height: int) -> Image.Image:
    """Paper."""
    return Image.new("RGB", (width, height), PAPER)


def beside(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Images from left to right, their tops in one line."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = blank(width, max(image.height for image in images))
    x = 0
    for image in images:
        row.paste(image, (x, 0))
        x += image.width + gap
    return row


def stack(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Images from top to bottom, their left edges in one line."""
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    column = blank(max(image.width for image in images), height)
    y = 0
    for image in images:
        column.paste(image, (0, y))
        y += image.height + gap
    return column


def in_rows(images: Sequence[Image.Image], columns: int, gap: int, row_gap: int) -> Image.Image:
    """Images from left to right, then down."""
    rows = [images[first : first + columns] for first in range(0, len(images), columns)]
    return stack([beside(row, gap) for row in rows], row_gap)


def sheet(
    title: str, notes: Sequence[str], body: Sequence[Image.Image], legend: Image.Image
) -> Float[np.ndarray, "height width 3"]:
    """The whole sheet: title, notes, body and legend, with even margins; values in [0, 1]."""
    width = max(560, legend.width, *(image.width for image in body))
    head = [text_line(title, TITLE)]
    head += [paragraph(note, width) for note in notes]
    content = stack([stack(head, gap=2), *body, legend], gap=24)
    whole = blank(content.width + 2 * MARGIN, content.height + 2 * MARGIN)
    whole.paste(content, (MARGIN, MARGIN))
    return np.asarray(whole, dtype=np.float32) / 255


def to_image(picture: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """8-bit RGB."""
    return Image.fromarray(np.rint(kept_in_range(picture) * 255).astype(np.uint8))


def _lowered(image: Image.Image, by: int) -> Image.Image:
    return stack([blank(1, by), image], gap=0)


def _shortened(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _drawable(text: str, size: int) -> tuple[str, Font]:
    """A text with a font that has its letters; without one, the letters as their code points."""
    default = _default_font(size)
    if text.replace("·", "").isascii():
        return text, default
    for name in _OTHER_FONTS:
        font = _installed_font(name, size)
        if font is not None and _has_letters(font, text):
            return text, font
    return ascii(text)[1:-1], default


@cache
def _default_font(size: int) -> Font:
    return ImageFont.load_default(size)  # comes with Pillow


@cache
def _installed_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    # What a font draws for a code point that is no character is what it draws for all it lacks.
    missing = _drawn(font, "\uffff")
    return all(each.isspace() or _drawn(font, each) != missing for each in text)


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    paper = Image.new("L", (32, 32))
    ImageDraw.Draw(paper).text((4, 4), letter, 255, font)
    return paper.tobytes()
