"""What a file holds, in lines for people: the text of `python -m nested_core inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from ..config import EncoderConfig
from ..encoder import Encoder
from ..sites import describe_sites
from .detection import kind_of, wrong_kind
from .hashing import encoder_hash
from .native import load_native, read_config
from .official import ASSUMPTIONS, known_layout, load_official
from .roles import Reading, read_roles
from .safetensors_file import Header, read_header
from .subject_file import read_record
from .weights import read_weights


def describe(path: str | os.PathLike[str]) -> Iterator[str]:
    """Lines about a file, as far as it can be read.

    Raises:
        CheckpointError: after the last line that could be told, what is wrong with the file.
    """
    header = read_header(path)
    kind = kind_of(header)
    if kind == "native-encoder":
        yield from _native(header)
    elif kind == "official-encoder":
        yield from _official(header)
    elif kind == "subject":
        yield from _subject(header)
    else:
        yield from _tensors(header)
        raise wrong_kind(header, "an encoder or a subject")


def _native(header: Header) -> Iterator[str]:
    yield _row("format", "encoder, native format")
    yield from _tensors(header)
    yield from _config(read_config(header))
    yield from _loaded(load_native(header))


def _official(header: Header) -> Iterator[str]:
    yield _row("format", "encoder without this project's metadata: keys read by rule")
    yield from _tensors(header)
    yield from _reading(read_roles(header.tensors))
    encoder = load_official(header)
    yield from _config(encoder.config)
    yield from (_row("assumed", assumption) for assumption in ASSUMPTIONS)
    yield from _loaded(encoder)


def _subject(header: Header) -> Iterator[str]:
    yield _row("format", "subject")
    yield from _tensors(header)
    record = read_record(header)
    tokens = ", ".join(map(str, record.references))
    yield _row("noun", record.noun)
    yield _row("references", f"{len(record.references)}, tokens of each: {tokens}")
    yield _row("thumbnail", f"{len(record.thumbnail):,} characters" if record.thumbnail else "none")
    yield _row("encoder", f"sha256 {record.encoder_hash}")
    read_weights(header, header.tensors)


def _tensors(header: Header) -> Iterator[str]:
    dtypes = Counter(spec.dtype for spec in header.tensors.values())
    yield _row("tensors", ", ".join(f"{n} {dtype}" for dtype, n in dtypes.items()) or "none")
    parameters = sum(spec.num_elements for spec in header.tensors.values())
    yield _row("parameters", f"{parameters:,}")


def _config(config: EncoderConfig) -> Iterator[str]:
    yield _row("noun", config.noun)
    yield _row("base", config.base)
    yield _row("image encoder", _pairs(asdict(config.image_encoder)))
    yield _row("resampler", _pairs(asdict(config.resampler)))
    yield _row("value norm", _pairs(asdict(config.value_norm)))


def _loaded(encoder: Encoder) -> Iterator[str]:
    dims = encoder.site_dims
    layout = known_layout(dims)
    yield _row("sites", f"{len(dims)}: {describe_sites(dims)}")
    yield _row("layout", layout or "none of the known base models'")
    yield _row(
        "widths", ", ".join(f"{n} sites of {dim}" for dim, n in Counter(dims.values()).items())
    )
    yield _row("hash", f"sha256 {encoder_hash(encoder)}")


def _reading(reading: Reading) -> Iterator[str]:
    yield from (_row("key", f"{key} -> {native}") for native, key in reading.names.items())
    yield from (_row("key", f"{key} -> not explained") for key in reading.unexplained)
    yield from (_row("problem", problem) for problem in reading.problems)
    yield from (_row("note", note) for note in reading.notes)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _row(label: str, text: str) -> str:
    return f"{label:<15}{text}"
