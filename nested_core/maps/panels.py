"""Parts that every sheet is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..shapes import Float
from .canvas import framed, name_line, stack, text_line, to_image
from .colours import SOFT, Rgb, laid_over, subject_colour
from .record import Grid, MapRecord

_Item = TypeVar("_Item")

LARGE, MEDIUM, SMALL = 300, 240, 150  # sides of square maps in px; others have the same area
WIDEST = 1640  # a sheet's body in px

# Of the drawn maps, this share of the pixels lies inside the scale; single hot pixels may leave it,
# or they would darken all others.
_INSIDE_SCALE = 0.998


def tokens_of(record: MapRecord, picture: int) -> list[str]:
    return [token for token in record.tokens if record.select(picture, token)]


def colour_of(record: MapRecord, token: str) -> Rgb:
    """The same in every sheet of a record."""
    return subject_colour(record.tokens.index(token))


def top_of_scale(maps: Sequence[Tensor]) -> tuple[float, bool]:
    """The end of a common colour scale, and whether single pixels lie beyond it."""
    pixels = torch.cat([each.flatten() for each in maps]).numpy()
    top = float(np.quantile(pixels, _INSIDE_SCALE))
    largest = float(pixels.max())
    if top < 0.2 * largest:  # almost everything is zero: the few pixels that are not matter
        top = largest
    return max(top, 1e-6), top < 0.98 * largest


def map_size(grid: Grid, side: int, widest: int = WIDEST) -> tuple[int, int]:
    """Width and height of a map with the area of a square; less where it would be long or wide."""
    height, width = grid
    scale = min(side / (width * height) ** 0.5, 1.3 * side / max(width, height), widest / width)
    return max(24, round(width * scale)), max(24, round(height * scale))


def map_image(
    shares: Tensor,
    size: tuple[int, int],
    image: Float[np.ndarray, "height width 3"] | None,
    smooth: bool = True,
) -> Image.Image:
    drawn = laid_over(resized(shares, size, smooth), ground(image, size))
    return framed(drawn, size, smooth)


def resized(
    shares: Tensor, size: tuple[int, int], smooth: bool = True
) -> Float[np.ndarray, "height width"]:
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    map_image = Image.fromarray(shares.float().numpy())
    return np.asarray(map_image.resize(size, how), dtype=np.float32).clip(min=0)


def ground(
    image: Float[np.ndarray, "height width 3"] | None, size: tuple[int, int]
) -> Float[np.ndarray, "height2 width2 3"] | None:
    if image is None:
        return None
    resized = to_image(image).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.float32) / 255


def panel(picture: Image.Image, head: Image.Image, caption: str) -> Image.Image:
    below = text_line(caption, colour=SOFT, width=picture.width)
    return stack([head, picture, below], gap=4)


def subject_name(record: MapRecord, token: str, note: str, width: int) -> Image.Image:
    return name_line(token, note, colour_of(record, token), width)


def of_picture(record: MapRecord, picture: int) -> str:
    return f" · picture {picture}" if len(record.pictures) > 1 else ""


def extent(record: MapRecord, picture: int) -> str:
    """What was averaged."""
    maps = record.select(picture)
    sites = {each.site for each in maps}
    numbers = sorted({each.step for each in maps})
    listed = f" ({record.plan.family.describe_sites(sites)})" if len(sites) <= 6 else ""
    return (
        f"Mean over heads, {counted(len(sites), 'site')}{listed} and "
        f"{counted(len(numbers), 'step')} of {maps[0].num_steps} ({_runs(numbers)}; the first is 0)."
    )


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _runs(numbers: Sequence[int]) -> str:
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    if len(numbers) > 6:
        return f"{numbers[0]}, {numbers[1]}, ... {numbers[-1]}"
    return ", ".join(map(str, numbers))


def evenly(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]
