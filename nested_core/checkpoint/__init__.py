"""Files of encoders (native and the authors' format) and of subjects; nothing else opens any."""

from __future__ import annotations

import os

from ..encoder import Encoder
from ..hashing import encoder_hash
from ..subject import Subject
from .choices import SETTINGS, Choices, parse_choices
from .description import describe
from .detection import FileKind, kind_of, wrong_kind
from .native import load_native, save_encoder
from .official import load_official
from .safetensors_file import read_header
from .shards import open_source, source_files
from .subject_file import load_subject_tokens, save_new_subject, save_subject

__all__ = [
    "SETTINGS",
    "Choices",
    "FileKind",
    "describe",
    "detect",
    "encoder_hash",
    "load_encoder",
    "load_subject",
    "parse_choices",
    "save_encoder",
    "save_new_subject",
    "save_subject",
    "source_files",
]

Path = str | os.PathLike[str]


def detect(path: Path) -> FileKind:
    """The kind of a file: `native-encoder`, `official-encoder`, `subject` or `unknown`.

    Raises:
        CheckpointError: no safetensors file, or a damaged one.
    """
    return kind_of(open_source(path))


def load_encoder(path: Path, choices: Choices | None = None) -> Encoder:
    """The encoder of a native or an official file, on the CPU, in the file's precision.

    Args:
        path: a file, one of several shards, or their index. Only the encoder's tensors are read.
        choices: values of `SETTINGS` that replace what the file says, or what is assumed where it
            cannot tell; they are part of the encoder's hash.

    Raises:
        CheckpointError: another kind of file, or damaged, incomplete, of another version; or a
            choice that does not fit.
    """
    source = open_source(path)
    kind = kind_of(source)
    if kind == "native-encoder":
        return load_native(source, choices or {})
    if kind == "official-encoder":
        return load_official(source, choices or {})
    raise wrong_kind(source, "an encoder file")


def load_subject(path: Path, encoder: Encoder) -> Subject:
    """The subject of a file, together with the encoder that it was made with.

    Raises:
        CheckpointError: another kind of file, damaged, or made with another encoder.
    """
    header = read_header(path)
    if kind_of(header) != "subject":
        raise wrong_kind(header, "a subject file")
    return load_subject_tokens(header, encoder)
