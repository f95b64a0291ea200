"""Encoders and image encoders by the names of their files: each is read once.

Whoever names the same file gets the same object, for as long as the file stays as it is and somebody
holds the object. So its weights are in memory once, under ComfyUI's management, and what was projected
for one node serves all others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import comfy.clip_vision
from comfy import model_management

from ...nested_core.checkpoint import Choices, load_encoder
from ...nested_core.encoder import Encoder
from ...nested_core.errors import SubjectError, shown
from .paths import CLIP_VISIONS, ENCODERS, file_fingerprint, file_path

_T = TypeVar("_T")
ClipVisionModel = comfy.clip_vision.ClipVisionModel

_encoders: WeakValueDictionary[Hashable, Encoder] = WeakValueDictionary()
_clip_visions: WeakValueDictionary[Hashable, ClipVisionModel] = WeakValueDictionary()
# No output of a node holds an image encoder. It stays while its encoder does, as that of a Load CLIP
# Vision node stays while ComfyUI keeps the node's output.
_last_clip_vision_of: WeakKeyDictionary[Encoder, ClipVisionModel] = WeakKeyDictionary()


def encoder_of_file(name: str, choices: Choices | None = None) -> Encoder:
    """The encoder of a file under `models/nested_attention`, read with these choices.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: as of `load_encoder`.
    """
    chosen = dict(choices or {})
    key = (file_fingerprint(ENCODERS, name), tuple(sorted(chosen.items())))
    path = file_path(ENCODERS, name)
    return _once(_encoders, key, lambda: load_encoder(path, chosen))


def clip_vision_of_file(name: str, encoder: Encoder) -> ClipVisionModel:
    """The image encoder of a file under `models/clip_vision`, kept for as long as `encoder` is.

    Raises:
        MissingFileError: there is no such file.
        SubjectError: ComfyUI finds no image encoder in it.
    """
    path = file_path(CLIP_VISIONS, name)
    key = file_fingerprint(CLIP_VISIONS, name)
    loaded = _once(_clip_visions, key, lambda: _load_clip_vision(str(path), name))
    _last_clip_vision_of[encoder] = loaded
    return loaded


def _load_clip_vision(path: str, name: str) -> ClipVisionModel:
    cause = None
    try:
        loaded = comfy.clip_vision.load(path)
    except (MemoryError, model_management.OOM_EXCEPTION):
        raise
    except Exception as error:  # whatever ComfyUI's reader stumbles over in a file that is none
        loaded, cause = None, error
    if loaded is None:
        reason = "" if cause is None else f" ({shown(cause, 300)})"
        raise SubjectError(
            f"clip_vision_name: '{shown(name, 300)}' is no image encoder that ComfyUI can read{reason}. "
            "Choose the CLIP vision model that the encoder was trained with (for the authors' release: "
            "CLIP ViT-H/14), or get its file again."
        ) from cause
    return loaded


def _once(known: WeakValueDictionary[Hashable, _T], key: Hashable, read: Callable[[], _T]) -> _T:
    value = known.get(key)
    if value is None:
        value = known[key] = read()
    return value
