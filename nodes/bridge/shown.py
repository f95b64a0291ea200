"""Pictures that a node shows on the page after its run, as ComfyUI's own preview nodes do.

ComfyUI keeps what is shown beside the node's output. See `shows_pictures`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...nested_core.checkpoint.thumbnails import thumbnail_picture
from ...nested_core.maps import MapRecord, Overlay, overlays
from ...nested_core.shapes import Float
from ...nested_core.subject import Subject, SubjectSequence

_SUBFOLDER = "nested_attention"

OVERLAYS = "nested_attention_overlays"  # as the page's script asks for them

# A dict or None; ComfyUI's annotation of `ui` leaves out the None that is its own default.
Shown = Any


def shows_pictures(define_schema: Callable[[Any], io.Schema]) -> Callable[[Any], io.Schema]:
    """Of a node whose pictures ComfyUI sends anew in each run in which it is cached.

    Releases that do not know this resend only those that the run comes past; on their page the
    pictures of the last run stay. Their `Schema` refuses the name as an argument.
    """

    @wraps(define_schema)
    def define(cls: Any) -> io.Schema:
        schema = define_schema(cls)
        schema.has_intermediate_output = True
        return schema

    return define


def show_photographs(
    photographs_bhwc: Iterable[Float[Tensor, "1 height width 3"]],
) -> Shown:
    """The `ui` of a node that shows these photographs, values in [0, 1]; None where nobody looks."""
    return _show(
        Image.fromarray((photo[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        for photo in photographs_bhwc
    )


def show_subjects(subjects: Iterable[Subject | SubjectSequence]) -> Shown:
    """The `ui` of a node that shows these subjects' thumbnails, in their order; None without any."""
    thumbnails = (each.thumbnail for subject in subjects for each in subject.subjects)
    pictures = map(thumbnail_picture, thumbnails)
    return _show(picture for picture in pictures if picture is not None)


def show_overlays(record: MapRecord) -> Shown:
    """The `ui` of a node whose maps the page's script may lay over the finished pictures.

    Not under `images`: a node would show them as pictures of its own.
    """
    layers = list(overlays(record))
    files = _files(_layer_picture(layer) for layer in layers)
    shown = [
        {
            **file,
            "picture": layer.picture,
            "token": layer.token,
            "colour": "#{:02x}{:02x}{:02x}".format(*layer.colour),
        }
        for file, layer in zip(files, layers, strict=False)  # no files where nobody looks
    ]
    return {OVERLAYS: shown} if shown else None


def _layer_picture(layer: Overlay) -> Image.Image:
    cover = (layer.cover * 255).round().astype(np.uint8)
    colours = np.broadcast_to(np.array(layer.colour, np.uint8), (*cover.shape, 3))
    return Image.fromarray(np.dstack([colours, cover]), "RGBA")


def _show(pictures: Iterable[Image.Image]) -> Shown:
    images = _files(pictures)
    return {"images": images} if images else None


def _files(pictures: Iterable[Image.Image]) -> list[dict[str, Any]]:
    """The pictures in temporary files; none where nobody looks."""
    temporary = Path(folder_paths.get_temp_directory())
    # A server makes this folder when it starts. Without one, nodes run in a script: nobody looks.
    if not temporary.is_dir():
        return []
    try:
        return [_saved(picture, temporary / _SUBFOLDER) for picture in pictures]
    except OSError:  # a full disk; no reason to lose the subject
        logging.debug("Nested Attention: no picture could be shown", exc_info=True)
        return []


def _saved(picture: Image.Image, folder: Path) -> dict[str, Any]:
    """A picture in a temporary file, as the page asks for it.

    The name is the content's: a picture that is shown again and again is written once, and no file
    ever changes behind a node that is cached.
    """
    content = hashlib.sha256(repr(picture.size).encode() + picture.tobytes())
    path = folder / f"{content.hexdigest()[:32]}.png"
    if not path.is_file():
        folder.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}.unfinished")
        picture.save(unfinished, format="PNG", compress_level=1)
        os.replace(unfinished, path)
    return {"filename": path.name, "subfolder": _SUBFOLDER, "type": "temp"}
