"""One training example: a picture, its caption, a photograph of its subject, a mask of the subject.

The metadata says of each which files it is made of; everything random in it follows from a seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import SubjectError
from ...preprocess import CropMode, clip_pixels, square_photographs
from ...shapes import Float
from ..base_model import SUBJECT, Caption, PictureSize
from ..errors import TrainingError

# After so many unreadable ones in a row the data is at fault, not the files.
MAX_UNREADABLE = 100

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


def record_from(where: str, entry: Any, image: str | None = None) -> Record:
    """A record from its JSON object; `image` where the file's name is known otherwise.

    Raises:
        TrainingError: an entry is missing or of the wrong type, or the text has no `{subject}`.
    """
    if not isinstance(entry, dict):
        raise TrainingError(f"{where}: found {_short_json(entry)}, expected a JSON object.")
    fields = cast("dict[str, Any]", entry)
    references: Any = fields.get("reference") or []
    values = {"file_name": image or fields.get("file_name"), "text": fields.get("text")}
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise TrainingError(f"{where}: {name} is {_short_json(value)}, expected text.")
    if values["text"].count(SUBJECT) != 1:  # type: ignore[union-attr]
        raise TrainingError(
            f"{where}: the text is {_short_json(values['text'])}, expected {SUBJECT} once, where the "
            "noun goes: the word that the subject is bound to."
        )
    listed: Any = [references] if isinstance(references, str) else references
    optional = [each for each in (fields.get("mask"), fields.get("noun")) if each is not None]
    if not isinstance(listed, list) or not all(
        isinstance(each, str) for each in [*cast("list[Any]", listed), *optional]
    ):
        raise TrainingError(
            f"{where}: reference, mask or noun is no text. Expected file names; `reference` may be "
            "a list of them."
        )
    return Record(
        image=cast("str", values["file_name"]),
        text=cast("str", values["text"]),
        references=tuple(cast("list[str]", listed)),
        mask=fields.get("mask"),
        noun=fields.get("noun"),
    )


def _short_json(value: Any) -> str:
    """The beginning of a value as JSON, for messages."""
    return json.dumps(value)[:80]


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

    def caption(self, record: Record) -> Caption:
        """The record's text with its own noun, or the encoder's."""
        return Caption(record.text, record.noun or self.noun)


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


def make_example(record: Record, read: ReadFile, preparation: Preparation, seed: int) -> Example:
    """The example, with everything random in it drawn from `seed`.

    Raises:
        UnreadableError: a file of it is missing or is no picture.
    """
    draws = random.Random(seed)
    reference = draws.choice(record.references or (record.image,))
    drops_image, drops_text = draw_dropout(draws.random(), preparation)
    picture = _decode(record.image, read, "RGB")
    mask = None if record.mask is None else _decode(record.mask, read, "L")
    square, size = _training_square(picture, preparation.resolution)
    seen_mask = torch.ones(1, *square.size)
    if mask is not None:
        seen_mask = _tensor(_training_square(mask.resize(picture.size), preparation.resolution)[0])
    caption = preparation.caption(record)
    is_itself = reference == record.image
    return Example(
        pixels=_pixels(square),
        reference_pixels=_reference_pixels(
            reference,
            picture if is_itself else _decode(reference, read, "RGB"),
            mask if is_itself else None,
            preparation,
        ),
        mask=seen_mask,
        caption=Caption(SUBJECT, caption.noun) if drops_text else caption,
        image_dropped=drops_image,
        size=size,
        seed=seed_of("noise", seed),
    )


def training_picture(
    record: Record, read: ReadFile, preparation: Preparation
) -> Float[Tensor, "3 height width"]:
    """An example's picture alone, as it is in each of its samples.

    Raises:
        UnreadableError: the file is missing or is no picture.
    """
    square, _ = _training_square(_decode(record.image, read, "RGB"), preparation.resolution)
    return _pixels(square)


def _pixels(square: Image.Image) -> Tensor:
    """A training picture in [-1, 1]."""
    return _tensor(square) * 2.0 - 1.0


def draw_dropout(uniform: float, shares: Preparation) -> tuple[bool, bool]:
    """Whether the image and whether the text is dropped, from a number in [0, 1)."""
    both = uniform < shares.drop_both
    image = both or uniform < shares.drop_both + shares.drop_image
    text = both or (not image and uniform < shares.drop_both + shares.drop_image + shares.drop_text)
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
    name: str, photograph: Image.Image, mask: Image.Image | None, preparation: Preparation
) -> Tensor:
    image_bhwc = _tensor(photograph).movedim(0, -1)[None]
    masks = None if mask is None else _tensor(mask.resize(photograph.size))
    crop: CropMode = preparation.reference_crop
    if crop == "subject" and masks is None:
        crop = "center"
    try:
        (square,) = square_photographs(image_bhwc, masks, crop)
    except SubjectError as error:
        raise UnreadableError(name, str(error)) from error
    return clip_pixels(square, preparation.reference_size)[0]


def _tensor(image: Image.Image) -> Tensor:
    """`[channels, height, width]` in [0, 1]."""
    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, channels).movedim(-1, 0).float() / 255.0
