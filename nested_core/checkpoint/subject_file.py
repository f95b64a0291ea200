"""Subject files, version 1: one subject's tokens and which encoder can read them."""

from __future__ import annotations

import json
import math
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
        own = f"those of '{encoder.name}' have {expected}"
        raise _damaged(header.where, f"its subject tokens have the width {width}, but {own}")
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
        names = ", ".join(sorted(header.tensors)) or "no tensor"
        raise _damaged(header.where, f"holds {names}, expected exactly '{_TENSOR}'")
    if spec.dtype != "F32" or len(spec.shape) != 2:
        found = f"'{_TENSOR}' is {spec.dtype} {list(spec.shape)}"
        raise _damaged(header.where, f"{found}, expected F32 [tokens, width]")
    _check_references(header.where, record, spec.shape[0])


def _check_references(where: str, record: SubjectRecord, num_tokens: int) -> None:
    total = sum(record.references)
    if total != num_tokens:
        found = f"its references have {total} tokens in all"
        raise _damaged(where, f"{found}, but '{_TENSOR}' has {num_tokens}")


def _parse_record(where: str, text: str) -> SubjectRecord:
    config = _parse_config(where, text)
    for key in ("noun", "encoder_hash"):
        value = config.get(key)
        if not isinstance(value, str) or not value.strip():
            raise _damaged(where, f"config.{key} is '{shown(value)}', expected text")
    noun, digest = config["noun"], config["encoder_hash"]
    if problem := word_problem(noun, MAX_NOUN_CHARACTERS):
        raise _damaged(where, f"config.noun, '{shown(noun)}', {problem}")
    if not _ENCODER_HASH.fullmatch(digest):
        expected = "expected 64 hexadecimal digits"
        raise _damaged(where, f"config.encoder_hash is '{shown(digest)}', {expected}")
    # Front-ends show it, so nothing else is let through.
    thumbnail: Any = config.get("thumbnail")
    if problem := thumbnail_problem(thumbnail):
        raise _damaged(where, f"config.thumbnail is {problem}")
    references: Any = config.get("references")
    if not references or not _are_numbers(references, (int,), 1.0, math.inf):
        expected = "expected the number of tokens of each photograph, such as [1024]"
        raise _damaged(where, f"config.references is {shown(references)}, {expected}")
    weights = _weights(where, config["weights"], len(references)) if "weights" in config else ()
    return SubjectRecord(noun, digest, tuple(references), thumbnail, weights)


def _parse_config(where: str, text: str) -> dict[str, Any]:
    try:
        config: Any = parse_json(text, _MAX_BYTES, _MAX_VALUES, _MAX_DEPTH)
    except ValueError as error:
        raise _damaged(where, f"'config' is not JSON ({shown(error)})") from error
    if not isinstance(config, dict):
        raise _damaged(where, f"'config' is {shown(text)}, expected an object")
    return cast("dict[str, Any]", config)


def _weights(where: str, weights: Any, num_references: int) -> tuple[float, ...]:
    are_weights = _are_numbers(weights, (int, float), SMALLEST_WEIGHT, 1.0)
    if not are_weights or len(weights) != num_references:
        expected = f"expected {num_references} number(s) from {SMALLEST_WEIGHT:g} to 1"
        found = f"config.weights is {shown(weights)}"
        raise _damaged(where, f"{found}, {expected}, one for each of config.references")
    return relative_weights([float(number) for number in weights])


def _are_numbers(values: Any, kinds: tuple[type, ...], least: float, most: float) -> bool:
    return isinstance(values, list) and all(
        type(number) in kinds and least <= number <= most for number in cast("list[Any]", values)
    )


def _damaged(where: str, finding: str) -> CheckpointError:
    return CheckpointError(f"{where}: {finding}. {_REMEDY}")
