"""The hash that ties a subject file to its encoder: of the content, whatever the file called it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch

from .encoder import Encoder
from .precision import dtype_name

# Hashing a full encoder takes seconds, and loaders run often.
_LoadedKey = tuple[tuple[Hashable, ...], str]
_hash_of_files: dict[_LoadedKey, str] = {}


def remember_files(encoder: Encoder, keys: tuple[Hashable, ...]) -> None:
    """Notes the files that an encoder was loaded from, so that they are hashed once.

    With another configuration the same files make another encoder.

    Args:
        keys: one for each file, another one when the file has changed.
    """
    vars(encoder)["loaded_key"] = (keys, encoder.config.to_json())


def encoder_hash(encoder: Encoder) -> str:
    """sha256 over the encoder's tensors and configuration, as 64 hexadecimal digits.

    In sorted order of the native names, each tensor adds one line `NAME DTYPE SHAPE` (the format's
    name of the precision, sizes joined by commas) and its bytes; the canonical JSON of the
    configuration ends it. Two files of the same content have the same hash, whatever their keys are
    called. An encoder is a value: its hash is computed once, so hash it only when it is finished.
    """
    memory = vars(encoder)
    key: _LoadedKey | None = memory.get("loaded_key")
    known: str | None = _hash_of_files.get(key) if key is not None else memory.get("content_hash")
    if known is None:
        known = _computed_hash(encoder)
        if key is not None:
            _hash_of_files[key] = known
        else:
            memory["content_hash"] = known
    return known


def _computed_hash(encoder: Encoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name} {dtype_name(tensor)} {shape}\n".encode())
        digest.update(memoryview(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()))
    digest.update(encoder.config.to_json().encode())
    return digest.hexdigest()
