"""One training example: a picture, its caption, a photograph of its subject, a mask of the subject."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import SubjectError
from ..preprocess import CropMode, clip_pixels, square_photographs
from ..shapes import Float
from .protocol import SUBJECT, Caption, PictureSize

ReadFile = Callable[[str], bytes]
# Pillow raises these for files that are no picture, cut off, or absurdly large.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class UnreadableError(Exception):
    """An example to be skipped: the file's name and what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Record:
    """What the metadata says of one example: file names, and text with `{subject}` in it.

    Attributes:
        references: photographs of the same subject; none means the picture itself.
        noun: for this example instead of the encoder's own.
    """

    image: str
    text: str
    references: tuple[str, ...] = ()
    mask: str | None = None
    noun: str | None = None


@dataclass(frozen=True)
class Preparation:
    """How examples are made ready.

    Attributes:
        resolution: side of the square training picture, in pixels.
        reference_size: side of the image encoder's input, in pixels.
        noun: what stands in captions for `{subject}`.
        reference_crop: as in the Encode Subject node; `subject` falls back to `center` without mask.
        drop_image, drop_text, drop_both: shares of the samples, in [0, 1].
    """

    resolution: int
    reference_size: int
    noun: str
    reference_crop: CropMode = "center"
    drop_image: float = 0.05
    drop_text: float = 0.05
    drop_both: float = 0.05


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, ready to be put into a batch."""

    pixels: Float[Tensor, "3 height width"]
    reference_pixels: Float[Tensor, "3 size size"]
    mask: Float[Tensor, "1 height width"]
    caption: Caption
    image_dropped: bool
    size: PictureSize
    seed: int


def seed_of(*parts: object) -> int:
    """63 bits that follow from the parts: the same on every machine, process and day."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_example(record: Record, read: ReadFile, how: Preparation, seed: int) -> Example:
    """The example, with everything random in it drawn from `seed`.

    Raises:
        UnreadableError: a file of it is missing or is no picture.
    """
    draws = random.Random(seed)
    reference = draws.choice(record.references or (record.image,))
    drops_image, drops_text = draw_dropout(draws.random(), how)
    picture = _decode(record.image, read, "RGB")
    mask = None if record.mask is None else _decode(record.mask, read, "L")
    square, size = _training_square(picture, how.resolution)
    mask_square = None
    if mask is not None:
        mask_square, _ = _training_square(mask.resize(picture.size), how.resolution)
    is_itself = reference == record.image
    return Example(
        pixels=_tensor(square) * 2.0 - 1.0,
        reference_pixels=_reference_pixels(
            reference,
            picture if is_itself else _decode(reference, read, "RGB"),
            mask if is_itself else None,
            how,
        ),
        mask=torch.ones(1, *square.size) if mask_square is None else _tensor(mask_square),
        caption=Caption(SUBJECT if drops_text else record.text, record.noun or how.noun),
        image_dropped=drops_image,
        size=size,
        seed=seed_of("noise", seed),
    )


def draw_dropout(uniform: float, how: Preparation) -> tuple[bool, bool]:
    """Whether the image and whether the text is dropped, from a number in [0, 1)."""
    both = uniform < how.drop_both
    image = both or uniform < how.drop_both + how.drop_image
    text = both or (not image and uniform < how.drop_both + how.drop_image + how.drop_text)
    return image, text


def _decode(name: str, read: ReadFile, mode: str) -> Image.Image:
    try:
        opened: Image.Image = Image.open(io.BytesIO(read(name)))
        upright: Image.Image = ImageOps.exif_transpose(opened)
        return upright.convert(mode)
    except _UNREADABLE as error:
        raise UnreadableError(name, f"{type(error).__name__}: {error}") from error


def _training_square(picture: Image.Image, side: int) -> tuple[Image.Image, PictureSize]:
    """The centre square at the training resolution, and where it came from."""
    width, height = picture.size
    factor = side / min(width, height)
    scaled = (max(side, round(factor * width)), max(side, round(factor * height)))
    left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    resized = picture.resize(scaled, Image.Resampling.LANCZOS)
    square = resized.crop((left, top, left + side, top + side))
    return square, PictureSize(height, width, top, left, side, side)


def _reference_pixels(
    name: str, photograph: Image.Image, mask: Image.Image | None, how: Preparation
) -> Tensor:
    image_bhwc = _tensor(photograph).movedim(0, -1)[None]
    masks = None if mask is None else _tensor(mask.resize(photograph.size))
    crop: CropMode = how.reference_crop
    if crop == "subject" and masks is None:
        crop = "center"
    try:
        (square,) = square_photographs(image_bhwc, masks, crop)
    except SubjectError as error:
        raise UnreadableError(name, str(error)) from error
    return clip_pixels(square, how.reference_size)[0]


def _tensor(image: Image.Image) -> Tensor:
    """`[channels, height, width]` in [0, 1]."""
    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).movedim(-1, 0).float() / 255.0
