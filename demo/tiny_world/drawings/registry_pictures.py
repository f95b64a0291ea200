"""Draws the pack's icon and banner for the Comfy Registry into docs/registry.

    python dev.py exec demo/tiny_world/drawings/registry_pictures.py

They illustrate what the pack is for. Every picture in them is the tiny world's own drawing, none is
a model's: what models make of it is in docs/evaluation.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[3]
# Behind everything else: nothing of the demo may hide another module.
sys.path.append(str(ROOT / "demo"))

from tiny_world.sheet import enlarged, font, to_image  # noqa: E402
from tiny_world.world import Identity, Placed, Scene, draw, identity_of  # noqa: E402

FOLDER = ROOT / "docs" / "registry"
# What the registry shows: an icon of at most 400 x 400 pixels, and a banner of 21:9.
ICON_SIZE = 400
BANNER_SIZE = (1260, 540)
NIGHT, PAPER, GREY, ACCENT = (24, 26, 36), (244, 242, 236), (168, 172, 188), (255, 196, 60)
COLOURS = 64  # of the files' palettes: the pictures are flat, and small files load at once

MARGIN, TILE_TOP, TILE = 60, 246, 7 * 32
TILE_COLUMNS = (476, 726, 976)
ARROW = (308, 452)  # its columns, between the photograph and the first picture


def main() -> None:
    draws = np.random.default_rng(0)
    anna = identity_of(
        draws, "person", {"hat": "red", "hair": "black", "shirt": "yellow", "pants": "blue"}
    )
    rex = identity_of(
        draws, "dog", {"ears": "purple", "fur": "orange", "scarf": "green", "paws": "white"}
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, image in (("icon", icon(anna)), ("banner", banner(anna, rex))):
        path = FOLDER / f"{name}.png"
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {image.width} x {image.height}, {path.stat().st_size} B")


def icon(subject: Identity) -> Image.Image:
    """The subject's head and shoulders, with the corners of a frame around what is looked up."""
    scene = Scene("photo", "forest", "nothing")
    # 20 of the 32 pixels each way, so that a pixel of the world is 20 pixels wide.
    picture = draw([Placed(subject, "centre")], scene)[4:24, 6:26]
    image = enlarged(to_image(picture), ICON_SIZE)
    pen = ImageDraw.Draw(image)
    low, high, arm, width = 24, ICON_SIZE - 25, 76, 16
    for x, to_x in ((low, low + arm), (high, high - arm)):
        for y, to_y in ((low, low + arm), (high, high - arm)):
            bar(pen, (x, y), (to_x, y), width)
            bar(pen, (x, y), (x, to_y), width)
    return image


def banner(person: Identity, dog: Identity) -> Image.Image:
    """A photograph, the word it is bound to, and the subject in scenes of other styles."""
    image = Image.new("RGB", BANNER_SIZE, NIGHT)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, 50), "Nested Attention", PAPER, font(84))
    words = "A subject from a photograph, bound to one word of the prompt"
    pen.text((MARGIN, 158), words, GREY, font(36))

    photograph = draw([Placed(person, "centre")], Scene("photo", "beach", "nothing"))
    alone, left, right = Placed(person, "centre"), Placed(person, "left"), Placed(dog, "right")
    pictures = [
        draw([alone], Scene("night", "city", "moon")),
        draw([left], Scene("sketch", "desert", "sun")),
        draw([left, right], Scene("photo", "forest", "sun")),
    ]
    for column, picture in zip((MARGIN, *TILE_COLUMNS), (photograph, *pictures), strict=True):
        image.paste(enlarged(to_image(picture), TILE), (column, TILE_TOP))
    last = MARGIN + TILE - 1, TILE_TOP + TILE - 1
    pen.rectangle(((MARGIN, TILE_TOP), last), outline=ACCENT, width=6)

    middle, (start, end) = TILE_TOP + TILE // 2, ARROW
    pen.line(((start, middle), (end - 20, middle)), ACCENT, 8)
    pen.polygon(((end, middle), (end - 26, middle - 18), (end - 26, middle + 18)), ACCENT)
    centre = (start + end) / 2, middle - 36
    pen.text(centre, "<anna>", ACCENT, font(36), anchor="mm")
    return image


def bar(pen: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int], width: int) -> None:
    """A line with square ends, so that two of them make a full corner."""
    left, right = sorted((start[0], end[0]))
    top, bottom = sorted((start[1], end[1]))
    half = width // 2
    pen.rectangle((left - half, top - half, right + half, bottom + half), fill=PAPER)


if __name__ == "__main__":
    main()
