"""Thumbnails of strangers: decoded once, within limits, before anything shows them."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL.Image import Image
from PIL.JpegImagePlugin import JpegImageFile

_MAX_CHARACTERS = 200_000  # a JPEG of 128 pixels, as this pack writes, needs a tenth of it
_MAX_SIDE = 512
# A progressive JPEG has about ten; one of many more costs a whole decoding for each.
_MAX_SCANS = 16
_START_OF_SCAN, _END_OF_PICTURE = b"\xff\xda", b"\xff\xd9"
_EXPECTED = "expected base64 of a JPEG"


def thumbnail_problem(value: Any) -> str | None:
    """What a value is instead of a thumbnail, in words that follow `is`; None where it is one.

    A thumbnail is empty text, or base64 of a whole JPEG of at most 512 pixels a side, which has been
    decoded once.
    """
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        kind = f"text of {len(value):,} characters" if isinstance(value, str) else f"{value!r:.60}"
        return f"{kind}, {_EXPECTED} of at most {_MAX_CHARACTERS:,} characters"
    if not value:
        return None
    try:
        content = base64.b64decode(value, validate=True)
    except ValueError:
        return f"not base64 of a JPEG, {_EXPECTED}"
    return _jpeg_problem(content)


def thumbnail_picture(value: str) -> Image | None:
    """The picture of a thumbnail; None where it is empty or no thumbnail."""
    if not value or thumbnail_problem(value) is not None:
        return None
    return JpegImageFile(io.BytesIO(base64.b64decode(value))).convert("RGB")


def _jpeg_problem(content: bytes) -> str | None:
    # Not Image.open: it would also try other decoders, and only warns of a picture of many pixels.
    try:
        picture = JpegImageFile(io.BytesIO(content))
        if max(picture.size) > _MAX_SIDE:
            width, height = picture.size
            return f"a JPEG of {width} x {height} pixels, expected at most {_MAX_SIDE} a side"
        if content.count(_START_OF_SCAN) > _MAX_SCANS:
            return f"a JPEG of more than {_MAX_SCANS} scans, expected an ordinary one"
        picture.load()
    # Pillow's decoders raise most kinds of errors on damaged pictures.
    except Exception as error:
        return f"not base64 of a JPEG that can be decoded ({type(error).__name__}), {_EXPECTED}"
    # Pillow itself lets a picture that is cut off pass where another pack has told it to.
    if _END_OF_PICTURE not in content[content.rfind(_START_OF_SCAN) :]:
        return f"a JPEG that is cut off, {_EXPECTED}"
    return None
