"""One picture of many: for each prompt the photographs, the right answer, and what was drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .prompts import Request
from .world import SIZE, Picture

COLUMNS = ("photograph", "right answer", "without the pack", "with the pack")

_ZOOM = 4
_CELL = SIZE * _ZOOM
_GAP, _MARGIN, _BLOCK_GAP = 12, 32, 52
_LINE, _CAPTION, _TITLE = 22, 24, 92
_TEXT = 16  # size of the prompts' letters
_BLOCK = len(COLUMNS) * _CELL + (len(COLUMNS) - 1) * _GAP
_BLOCKS = 2  # prompts beside each other
PAPER, INK, SOFT, ACCENT = (251, 250, 247), (38, 36, 48), (120, 116, 128), (196, 72, 24)


@dataclass(frozen=True)
class Row:
    """A prompt with what was drawn for it, and the subject's PSNR of both in dB."""

    request: Request
    without: Picture
    with_pack: Picture
    psnr_without: float
    psnr_with: float


def make_sheet(rows: Sequence[Row], photographs: Mapping[str, Picture], title: str) -> Image.Image:
    """The picture; prompts run from left to right, then down."""
    pairs = [rows[first : first + _BLOCKS] for first in range(0, len(rows), _BLOCKS)]
    lines = [max(len(wrapped(row.request.text, _TEXT, _BLOCK)) for row in pair) for pair in pairs]
    heights = [count * _LINE + _CELL + _CAPTION + 2 * _GAP for count in lines]
    blocks = min(_BLOCKS, len(rows))
    width = 2 * _MARGIN + blocks * _BLOCK + (blocks - 1) * _BLOCK_GAP
    sheet = Image.new("RGB", (width, _TITLE + sum(heights) + _GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 20), title, INK, font(20))
    for block in range(blocks):
        _draw_heading(pen, _left(block))
    top = _TITLE
    for pair, count, height in zip(pairs, lines, heights, strict=True):
        for block, row in enumerate(pair):
            _draw_row(sheet, (_left(block), top), count, row, photographs)
        top += height
    return sheet


def _left(block: int) -> int:
    return _MARGIN + block * (_BLOCK + _BLOCK_GAP)


def _draw_heading(pen: ImageDraw.ImageDraw, left: int) -> None:
    for number, name in enumerate(COLUMNS):
        middle = left + number * (_CELL + _GAP) + _CELL // 2
        pen.text((middle, _TITLE - 10), name, SOFT, font(14), anchor="ms")


def _draw_row(
    sheet: Image.Image,
    corner: tuple[int, int],
    lines: int,
    row: Row,
    photographs: Mapping[str, Picture],
) -> None:
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    texts = wrapped(row.request.text, _TEXT, _BLOCK)
    top += _GAP // 2 + (lines - len(texts)) * _LINE
    for text in texts:
        write(pen, (left, top), text, _TEXT)
        top += _LINE
    _paste_photographs(sheet, (left, top), row.request.tokens, photographs)
    drawn = (
        (row.request.right, ""),
        (row.without, f"subject {row.psnr_without:.1f} dB"),
        (row.with_pack, f"subject {row.psnr_with:.1f} dB"),
    )
    for number, (picture, caption) in enumerate(drawn, start=1):
        x = left + number * (_CELL + _GAP)
        sheet.paste(enlarged(to_image(picture), _CELL), (x, top))
        middle = (x + _CELL // 2, top + _CELL + 17)
        pen.text(middle, caption, SOFT, font(14), anchor="ms")


def _paste_photographs(
    sheet: Image.Image,
    corner: tuple[int, int],
    tokens: Sequence[str],
    photographs: Mapping[str, Picture],
) -> None:
    """The subjects' photographs beside each other in one cell, each over its token."""
    pen = ImageDraw.Draw(sheet)
    gap = _GAP // 3
    side = (_CELL - (len(tokens) - 1) * gap) // len(tokens)
    top = corner[1] + _CELL - side
    for number, token in enumerate(tokens):
        x = corner[0] + number * (side + gap)
        sheet.paste(enlarged(to_image(photographs[token]), side), (x, top))
        pen.text((x + side // 2, top + side + 17), token, ACCENT, font(14), anchor="ms")


def write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int) -> None:
    """A line of a prompt, its tokens in a colour of their own."""
    x, y = corner
    for part in re.split(r"(<\w+>)", text):
        pen.text((x, y), part, ACCENT if part.startswith("<") else INK, font(size))
        x += round(font(size).getlength(part))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of at most this many pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """A square of this many pixels, each of its own still a square."""
    return image.resize((side, side), Image.Resampling.NEAREST)


def to_image(picture: Picture) -> Image.Image:
    """8-bit RGB, as files hold it."""
    return Image.fromarray(np.rint(picture * 255.0).clip(0, 255).astype(np.uint8))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one that comes with Pillow."""
    return ImageFont.load_default(size)
