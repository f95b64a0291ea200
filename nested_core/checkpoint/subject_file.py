"""Subject files, version 1: one subject's tokens and which encoder can read them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..bounded_json import parse_json
from ..encoder import Encoder
from ..errors import CheckpointError, shown
from ..hashing import encoder_hash
from ..subject import SMALLEST_WEIGHT, Subject, relative_weights
from ..words import MAX_NOUN_CHARACTERS, word_problem
from .native import FORMAT_VERSION, check_version, metadata_entry
from .new_files import write_new_file
from .safetensors_file import Header
from .thumbnails import thumbnail_problem
from .weights import read_weights, write_weights

SUBJECT_FORMAT = "nested-attention-subject"

_TENSOR = "subject_tokens"
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 2**20, 10_000, 8  # of the config
_ENCODER_HASH = re.compile("[0-9a-f]{64}")
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
    """Writes a subject so that `load_subject` gives back exactly its tokens; replaces an older file.

    Raises:
        CheckpointError: the subject could not be loaded again, or the disk refuses.
    """
    write_weights(path, *_content(subject, Path(path).name))


def save_new_subject(subject: Subject, folder: str | os.PathLike[str], prefix: str) -> Path:
    """Writes a subject under the first name that is not taken, and returns that file's path.

    Args:
        prefix: begins the name, a number follows; folders in front of it are made inside `folder`.
            Any number of programs may save under the same prefix at once.

    Raises:
        CheckpointError: the prefix is no file name, or as `save_subject`.
    """
    tensors, metadata = _content(subject, shown(prefix))
    return write_new_file(folder, prefix, tensors, metadata)


def _content(subject: Subject, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A subject file's tensors and metadata, checked as a loader checks them."""
    config = {
        "noun": subject.noun,
        "encoder_hash": encoder_hash(subject.encoder),
        "references": list(subject.references),
        "thumbnail": subject.thumbnail,
        **({"weights": list(subject.weights)} if subject.weights else {}),
    }
    text = json.dumps(config, sort_keys=True)
    _check_references(where, _parse_record(where, text), len(subject.tokens))
    metadata = {"format": SUBJECT_FORMAT, "format_version": FORMAT_VERSION, "config": text}
    return {_TENSOR: subject.tokens.detach().float()}, metadata


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
    own_hash = encoder_hash(encoder)
    if record.encoder_hash != own_hash:
        raise CheckpointError(
            f"{where}: was made with the encoder {record.encoder_hash[:_SHOWN_DIGITS]}, but "
            f"'{encoder.name}' is {own_hash[:_SHOWN_DIGITS]}. Load the encoder it was made with, or "
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
        config: Any = parse_json(text, _MAX_BYTES, _MAX_VALUES, _MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: 'config' is not JSON ({shown(error)}). {_REMEDY}"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: 'config' is {text[:60]}, expected an object. {_REMEDY}")
    config = cast("dict[str, Any]", config)
    references: Any = config.get("references")
    if not _is_references(references):
        raise CheckpointError(
            f"{where}: config.references is {str(references)[:60]}, expected the number of tokens "
            f"of each photograph, such as [1024]. {_REMEDY}"
        )
    return SubjectRecord(
        noun=_noun(where, config),
        encoder_hash=_encoder_hash(where, config),
        references=tuple(references),
        thumbnail=_thumbnail(where, config.get("thumbnail")),
        weights=_weights(where, config, len(references)),
    )


def _noun(where: str, config: dict[str, Any]) -> str:
    noun = _text(where, config, "noun")
    problem = word_problem(noun, MAX_NOUN_CHARACTERS)
    if problem is not None:
        raise CheckpointError(f"{where}: config.noun, '{shown(noun)}', {problem}. {_REMEDY}")
    return noun


def _encoder_hash(where: str, config: dict[str, Any]) -> str:
    digest = _text(where, config, "encoder_hash")
    if not _ENCODER_HASH.fullmatch(digest):
        raise CheckpointError(
            f"{where}: config.encoder_hash is '{shown(digest)}', expected 64 hexadecimal digits. "
            f"{_REMEDY}"
        )
    return digest


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
    """Empty, or base64 of a small JPEG: front-ends show it, so nothing else is let through."""
    problem = thumbnail_problem(value)
    if problem is not None:
        raise CheckpointError(f"{where}: config.thumbnail is {problem}. {_REMEDY}")
    return cast("str", value)
