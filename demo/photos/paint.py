"""Paints the two example photographs, anna.jpg and rex.jpg: nobody's face, so nobody's rights.

    python demo/photos/paint.py

Shapes are drawn large, shaded with soft light, blurred like a lens does and given film grain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, SCALE = 512, 2
Color = tuple[int, int, int]
Box = Sequence[float]


class Canvas:
    """Soft-edged coloured shapes on top of each other; coordinates in final pixels."""

    def __init__(self, top: Color, bottom: Color) -> None:
        ramp = np.linspace(0, 1, SIZE * SCALE)[:, None, None]
        colors = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
        pixels = np.repeat(colors, SIZE * SCALE, axis=1).astype(np.uint8)
        self.image = Image.fromarray(pixels)

    def shape(
        self, kind: str, points: Box, color: Color, soft: float = 1.0, opacity: float = 1.0
    ) -> None:
        """`kind` is a method of ImageDraw: ellipse, polygon, ..."""
        layer = Image.new("L", self.image.size, 0)
        scaled = [value * SCALE for value in points]
        getattr(ImageDraw.Draw(layer), kind)(scaled, fill=round(255 * opacity))
        layer = layer.filter(ImageFilter.GaussianBlur(soft * SCALE))
        self.image.paste(Image.new("RGB", self.image.size, color), mask=layer)

    def photograph(self, seed: int) -> Image.Image:
        """The picture with a vignette and grain."""
        picture = self.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float64)
        y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
        pixels *= (1.04 - 0.22 * (x**2 + y**2))[..., None]
        grain = np.random.default_rng(seed).normal(0, 3.5, (SIZE, SIZE, 1))
        return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def both_sides(canvas: Canvas, kind: str, points: Box, color: Color, **options: float) -> None:
    """A shape and its mirror image about the vertical axis."""
    canvas.shape(kind, points, color, **options)
    mirrored = [SIZE - value if i % 2 == 0 else value for i, value in enumerate(points)]
    if kind == "ellipse":
        mirrored[0], mirrored[2] = mirrored[2], mirrored[0]
    canvas.shape(kind, mirrored, color, **options)


def anna() -> Image.Image:
    """A woman with red hair, green eyes and a blue jumper."""
    c = Canvas((176, 190, 196), (120, 132, 140))
    c.shape("ellipse", (60, 40, 220, 200), (205, 214, 214), soft=40)
    c.shape("ellipse", (122, 60, 390, 440), (120, 48, 24), soft=5)
    c.shape("ellipse", (88, 408, 424, 720), (38, 66, 118), soft=3)
    c.shape("ellipse", (110, 416, 300, 700), (64, 98, 156), soft=24, opacity=0.8)
    c.shape("polygon", (214, 330, 298, 330, 316, 440, 256, 470, 196, 440), (208, 158, 130), soft=4)
    c.shape("ellipse", (196, 350, 316, 420), (176, 122, 98), soft=12, opacity=0.7)
    c.shape("ellipse", (166, 112, 346, 376), (232, 188, 160), soft=3)
    c.shape("ellipse", (176, 120, 280, 300), (246, 212, 188), soft=26, opacity=0.8)
    c.shape("ellipse", (290, 180, 350, 350), (206, 152, 124), soft=18, opacity=0.7)
    both_sides(c, "ellipse", (176, 262, 226, 306), (236, 158, 138), soft=12, opacity=0.55)
    c.shape(
        "polygon",
        (160, 210, 168, 130, 214, 92, 300, 84, 340, 120, 352, 210, 330, 160, 262, 128, 196, 160),
        (140, 58, 28),
        soft=3,
    )
    c.shape("polygon", (196, 100, 300, 90, 330, 124, 250, 112), (188, 96, 52), soft=8, opacity=0.8)
    both_sides(
        c, "polygon", (150, 180, 176, 190, 172, 340, 140, 400, 122, 320), (112, 44, 22), soft=4
    )
    both_sides(c, "ellipse", (190, 214, 240, 240), (250, 246, 240), soft=1.5)
    both_sides(c, "ellipse", (204, 214, 228, 238), (62, 112, 72), soft=1)
    both_sides(c, "ellipse", (211, 221, 221, 231), (16, 20, 18), soft=0.8)
    both_sides(c, "ellipse", (213, 220, 218, 225), (255, 255, 255), soft=0.6)
    both_sides(c, "polygon", (186, 204, 214, 192, 242, 202, 214, 198), (104, 48, 28), soft=1.5)
    both_sides(c, "polygon", (188, 224, 214, 210, 242, 226, 214, 215), (78, 48, 40), soft=1)
    c.shape(
        "polygon", (250, 226, 262, 226, 274, 282, 240, 282), (216, 164, 138), soft=6, opacity=0.7
    )
    both_sides(c, "ellipse", (241, 277, 251, 285), (158, 96, 80), soft=2)
    c.shape(
        "polygon",
        (222, 316, 248, 308, 256, 312, 264, 308, 290, 316, 256, 322),
        (178, 70, 70),
        soft=1.5,
    )
    c.shape("polygon", (224, 317, 256, 320, 288, 317, 256, 336), (204, 94, 92), soft=1.5)
    rng = np.random.default_rng(4)
    for x, y in rng.uniform((206, 244), (306, 290), (40, 2)):
        c.shape("ellipse", (x, y, x + 2, y + 2), (190, 126, 98), soft=0.8, opacity=0.6)
    return c.photograph(1)


def rex() -> Image.Image:
    """A brown dog with a white blaze and a red collar, on grass."""
    c = Canvas((150, 178, 140), (84, 120, 62))
    c.shape("ellipse", (280, 30, 460, 180), (196, 212, 168), soft=40)
    c.shape("ellipse", (120, 330, 392, 700), (112, 72, 40), soft=6)
    c.shape("ellipse", (196, 380, 316, 640), (236, 228, 214), soft=14)
    c.shape("ellipse", (146, 104, 366, 362), (136, 88, 48), soft=4)
    c.shape("ellipse", (160, 110, 280, 240), (172, 118, 68), soft=24, opacity=0.8)
    both_sides(
        c,
        "polygon",
        (150, 130, 178, 110, 186, 230, 150, 316, 116, 300, 112, 200),
        (82, 50, 28),
        soft=5,
    )
    both_sides(
        c, "polygon", (140, 160, 166, 140, 166, 230, 142, 280), (112, 72, 42), soft=9, opacity=0.8
    )
    c.shape("polygon", (244, 100, 268, 100, 284, 230, 228, 230), (242, 236, 224), soft=5)
    c.shape("ellipse", (192, 226, 320, 360), (238, 230, 216), soft=5)
    c.shape("ellipse", (214, 300, 298, 366), (206, 192, 172), soft=12, opacity=0.7)
    both_sides(c, "ellipse", (190, 184, 226, 220), (34, 22, 16), soft=1.5)
    both_sides(c, "ellipse", (196, 188, 220, 214), (92, 56, 24), soft=1.5)
    both_sides(c, "ellipse", (202, 194, 215, 208), (10, 8, 8), soft=1)
    both_sides(c, "ellipse", (204, 193, 210, 199), (255, 255, 255), soft=0.7)
    both_sides(c, "ellipse", (192, 168, 222, 180), (176, 126, 78), soft=4, opacity=0.8)
    c.shape("ellipse", (226, 236, 286, 280), (28, 24, 26), soft=2)
    c.shape("ellipse", (236, 241, 264, 254), (120, 116, 122), soft=4, opacity=0.8)
    c.shape("polygon", (254, 278, 258, 278, 258, 304, 254, 304), (60, 44, 40), soft=1.5)
    c.shape("polygon", (222, 306, 256, 300, 290, 306, 256, 314), (60, 40, 38), soft=2)
    c.shape("ellipse", (238, 306, 274, 350), (222, 122, 128), soft=2)
    c.shape("polygon", (150, 366, 362, 366, 352, 398, 160, 398), (176, 34, 38), soft=3)
    c.shape("ellipse", (242, 388, 270, 418), (214, 180, 84), soft=1.5)
    rng = np.random.default_rng(5)
    for x, y in rng.uniform((150, 120), (362, 330), (120, 2)):
        c.shape("ellipse", (x, y, x + 1.6, y + 6), (70, 44, 24), soft=0.8, opacity=0.25)
    return c.photograph(2)


if __name__ == "__main__":
    for paint in (anna, rex):
        paint().save(Path(__file__).with_name(f"{paint.__name__}.jpg"), quality=92)
