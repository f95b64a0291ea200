"""Draws docs/result.png, the first picture of README.md: photographs, and what is drawn of them.

    python dev.py exec demo/tiny_world/drawings/result_picture.py

starts a ComfyUI of its own and runs the demo's workflow in it, three prompts with this pack and
without it. The subjects are the demo's: no model has seen them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[3]
# Behind everything else: nothing of the demo may hide another module.
sys.path.append(str(ROOT / "demo"))

from run import draw_all  # noqa: E402

from tiny_world.drawings.server import tiny_world_server  # noqa: E402
from tiny_world.prompts import draw_cast, read_prompt  # noqa: E402
from tiny_world.sheet import (  # noqa: E402
    ACCENT,
    PAPER,
    SOFT,
    Row,
    enlarged,
    font,
    to_image,
    wrapped,
    write,
)
from tiny_world.world import SIZE, Picture  # noqa: E402

FILE = ROOT / "docs" / "result.png"
SEED = 1  # the demo's, of the subjects and of the sampler
PROMPTS = (
    "a photo in the forest under a sun, at the left <anna>",
    "a night in the city under a moon, at the right <anna>",
    "a photo in the desert under a sun, at the left <anna>, at the right <rex>",
)
COLUMNS = ("prompt", "photograph", "without the pack", "with the pack")
CAPTION = "Drawn by the models of the tiny world, 32 x 32 pixels. Each row has one seed."
STEP = 4  # of the file's colours, of 256: nobody sees it, and the file is a fifth smaller

# Whole multiples of the world's pixels, so that all of them are squares of one size.
CELL, ALONE, OF_SEVERAL = 5 * SIZE, 4 * SIZE, 2 * SIZE
MARGIN, GAP, HEADING, FOOT = 20, 16, 40, 34
TEXT = 220  # the width of the prompts
LETTERS, LINE = 19, 28


def main() -> None:
    cast, photographs = draw_cast(SEED)
    requests = [read_prompt(text, cast) for text in PROMPTS]
    with tiny_world_server(photographs) as url:
        rows = asyncio.run(draw_all(url, requests, SEED))
    image = result_picture(rows, photographs)
    coarser = [round(level / STEP) * STEP for level in range(256)]
    image.point(coarser * len(image.getbands())).save(FILE, optimize=True)
    print(f"{FILE.relative_to(ROOT)}: {image.width} x {image.height}, {FILE.stat().st_size} B")


def result_picture(rows: Sequence[Row], photographs: Mapping[str, Picture]) -> Image.Image:
    """A row for each prompt; see `COLUMNS`."""
    width = 2 * MARGIN + TEXT + 3 * (CELL + GAP)
    height = HEADING + len(rows) * (CELL + GAP) + FOOT
    image = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(image)
    lefts = [MARGIN + TEXT + GAP + number * (CELL + GAP) for number in range(3)]
    pen.text((MARGIN, HEADING - 12), COLUMNS[0], SOFT, font(LETTERS), anchor="ls")
    for left, name in zip(lefts, COLUMNS[1:], strict=True):
        pen.text((left + CELL // 2, HEADING - 12), name, SOFT, font(LETTERS), anchor="ms")
    for number, row in enumerate(rows):
        top = HEADING + number * (CELL + GAP)
        for count, line in enumerate(wrapped(row.request.text, LETTERS, TEXT)):
            write(pen, (MARGIN, top + count * LINE), line, LETTERS)
        paste_photographs(image, (lefts[0], top), row.request.tokens, photographs)
        for left, picture in zip(lefts[1:], (row.without, row.with_pack), strict=True):
            image.paste(enlarged(to_image(picture), CELL), (left, top))
    pen.text((MARGIN, height - MARGIN), CAPTION, SOFT, font(LETTERS - 3), anchor="ls")
    return image


def paste_photographs(
    image: Image.Image,
    corner: tuple[int, int],
    tokens: Sequence[str],
    photographs: Mapping[str, Picture],
) -> None:
    """One over its token, or several under one another, each beside its token."""
    left, top = corner
    pen = ImageDraw.Draw(image)
    if len(tokens) == 1:
        image.paste(
            enlarged(to_image(photographs[tokens[0]]), ALONE), (left + (CELL - ALONE) // 2, top)
        )
        middle = (left + CELL // 2, top + CELL - 8)
        pen.text(middle, tokens[0], ACCENT, font(LETTERS), anchor="ms")
        return
    for number, token in enumerate(tokens):
        y = top + number * (OF_SEVERAL + GAP)
        image.paste(enlarged(to_image(photographs[token]), OF_SEVERAL), (left + GAP, y))
        beside = (left + GAP + OF_SEVERAL + GAP // 2, y + OF_SEVERAL // 2)
        pen.text(beside, token, ACCENT, font(LETTERS), anchor="lm")


if __name__ == "__main__":
    main()
