"""Subject files, version 1: one subject's tokens and which encoder can read them."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..encoder import Encoder
from ..errors import CheckpointError
from ..subject import SMALLEST_WEIGHT, Subject, relative_weights
from .hashing import encoder_hash
from .native import FORMAT_VERSION, check_version, metadata_entry
from .safetensors_file import Header
from .weights import read_weights, write_weights

SUBJECT_FORMAT = "nested-attention-subject"

_TENSOR = "subject_tokens"
_MAX_THUMBNAIL_CHARACTERS = 200_000  # a JPEG of 128 pixels needs a tenth of it
_SHOWN_DIGITS = 12
_REMEDY = "The file is damaged or was not written by this pack: encode the photograph again."


@dataclass(frozen=True)
class SubjectRecord:
    """The metadata of a subject file. `references`: number of tokens of each photograph."""

    noun: str
    encoder_hash: str
    references: tuple[int, ...]
    thumbnail: str = field(repr=False)
    weights: tuple[float, ...] = ()


def save_subject(subject: Subject, path: str | os.PathLike[str]) -> None:
    """Writes a subject so that `load_subject` gives back exactly its tokens.

    Raises:
        CheckpointError: the subject could not be loaded again, or the disk refuses.
    """
    config = {
        "noun": subject.noun,
        "encoder_hash": encoder_hash(subject.encoder),
        "references": list(subject.references),
        "thumbnail": subject.thumbnail,
        **({"weights": list(subject.weights)} if subject.weights else {}),
    }
    metadata = {
        "format": SUBJECT_FORMAT,
        "format_version": FORMAT_VERSION,
        "config": json.dumps(config, sort_keys=True),
    }
    where = Path(path).name
    _check_references(where, _parse_record(where, metadata["config"]), len(subject.tokens))
    write_weights(path, {_TENSOR: subject.tokens.detach().float()}, metadata)


def load_subject_tokens(header: Header, encoder: Encoder) -> Subject:
    """The subject of a file, for the encoder it was made with.

    Raises:
        CheckpointError: made with another encoder, or not what the format says.
    """
    record = read_record(header)
    _check_encoder(header.where, record, encoder)
    width, expected = header.tensors[_TENSOR].shape[1], encoder.config.resampler.output_dim
    if width != expected:
        raise CheckpointError(
            f"{header.where}: its subject tokens have the width {width}, but those of "
            f"'{encoder.name}' have {expected}. {_REMEDY}"
        )
    tokens: Tensor = read_weights(header, [_TENSOR])[_TENSOR]
    return Subject(
        tokens, encoder, record.references, record.noun, record.thumbnail, record.weights
    )


def read_record(header: Header) -> SubjectRecord:
    """The checked metadata of a subject file, without its tokens.

    Raises:
        CheckpointError: an entry is missing or of the wrong kind, or does not fit the tokens.
    """
    check_version(header)
    record = _parse_record(header.where, metadata_entry(header, "config"))
    _check_tokens(header, record)
    return record


def _check_encoder(where: str, record: SubjectRecord, encoder: Encoder) -> None:
    found = encoder_hash(encoder)
    if record.encoder_hash != found:
        raise CheckpointError(
            f"{where}: was made with the encoder {record.encoder_hash[:_SHOWN_DIGITS]}, but "
            f"'{encoder.name}' is {found[:_SHOWN_DIGITS]}. Load the encoder it was made with, or "
            "encode the photograph again with this one."
        )


def _check_tokens(header: Header, record: SubjectRecord) -> None:
    spec = header.tensors.get(_TENSOR)
    if spec is None or len(header.tensors) != 1:
        raise CheckpointError(
            f"{header.where}: holds {', '.join(sorted(header.tensors)) or 'no tensor'}, expected "
            f"exactly '{_TENSOR}'. {_REMEDY}"
        )
    if spec.dtype != "F32" or len(spec.shape) != 2:
        raise CheckpointError(
            f"{header.where}: '{_TENSOR}' is {spec.dtype} {list(spec.shape)}, expected F32 "
            f"[tokens, width]. {_REMEDY}"
        )
    _check_references(header.where, record, spec.shape[0])


def _check_references(where: str, record: SubjectRecord, num_tokens: int) -> None:
    if sum(record.references) != num_tokens:
        raise CheckpointError(
            f"{where}: its references have {sum(record.references)} tokens in all, but "
            f"'{_TENSOR}' has {num_tokens}. {_REMEDY}"
        )


def _parse_record(where: str, text: str) -> SubjectRecord:
    try:
        config: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: 'config' is not JSON ({error}). {_REMEDY}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: 'config' is {text[:60]}, expected an object. {_REMEDY}")
    config = cast("dict[str, Any]", config)
    noun, hash_text = _text(where, config, "noun"), _text(where, config, "encoder_hash")
    references: Any = config.get("references")
    if not _is_references(references):
        raise CheckpointError(
            f"{where}: config.references is {str(references)[:60]}, expected the number of tokens "
            f"of each photograph, such as [1024]. {_REMEDY}"
        )
    thumbnail = _thumbnail(where, config.get("thumbnail"))
    weights = _weights(where, config, len(references))
    return SubjectRecord(noun, hash_text, tuple(references), thumbnail, weights)


def _text(where: str, config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value.strip():
        raise CheckpointError(
            f"{where}: config.{key} is {str(value)[:60]!r}, expected text. {_REMEDY}"
        )
    return value


def _is_references(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) > 0
        and all(type(number) is int and number > 0 for number in cast("list[Any]", value))
    )


def _weights(where: str, config: dict[str, Any], num_references: int) -> tuple[float, ...]:
    """Empty where the file has none."""
    if "weights" not in config:
        return ()
    value = config["weights"]
    if not _is_weights(value, num_references):
        raise CheckpointError(
            f"{where}: config.weights is {str(value)[:60]}, expected {num_references} number(s) from "
            f"{SMALLEST_WEIGHT:g} to 1, one for each of config.references. {_REMEDY}"
        )
    return relative_weights([float(number) for number in value])


def _is_weights(value: Any, num_references: int) -> bool:
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) == num_references
        and all(
            type(number) in (int, float) and SMALLEST_WEIGHT <= number <= 1
            for number in cast("list[Any]", value)
        )
    )


def _thumbnail(where: str, value: Any) -> str:
    """Empty, or base64 of a JPEG: front-ends show it, so nothing else is let through."""
    if not isinstance(value, str) or len(value) > _MAX_THUMBNAIL_CHARACTERS:
        found = f"text of {len(value):,} characters" if isinstance(value, str) else f"{value!r:.60}"
        raise CheckpointError(
            f"{where}: config.thumbnail is {found}, expected base64 of a JPEG of at most "
            f"{_MAX_THUMBNAIL_CHARACTERS:,} characters. {_REMEDY}"
        )
    if value and not _is_jpeg(value):
        raise CheckpointError(f"{where}: config.thumbnail is not base64 of a JPEG. {_REMEDY}")
    return value


def _is_jpeg(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(b"\xff\xd8")
    except ValueError:
        return False
