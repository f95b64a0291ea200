"""What a file holds, in lines for people: the text of `python -m nested_core inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from ..config import EncoderConfig
from ..encoder import Encoder
from ..hashing import encoder_hash
from .aside import Group
from .choices import Choices, choose
from .detection import kind_of, wrong_kind
from .native import load_native, read_config
from .official import assumptions, load_official, read_source
from .roles import Reading, read_roles
from .safetensors_file import Header, read_header
from .shards import Source, open_source
from .subject_file import read_record
from .weights import read_weights


def describe(path: str | os.PathLike[str], choices: Choices | None = None) -> Iterator[str]:
    """Lines about a file, as far as it can be read.

    Args:
        choices: as of `load_encoder`.

    Raises:
        CheckpointError: after the last line that could be told, what is wrong with the file.
    """
    source = open_source(path)
    kind = kind_of(source)
    if kind == "native-encoder":
        yield from _native(source, choices or {})
    elif kind == "official-encoder":
        yield from _official(source, choices or {})
    elif kind == "subject":
        yield from _subject(read_header(path))
    else:
        yield from _tensors(source)
        # By the header alone: what is no encoder is not worth comparing.
        yield from _reading(source, read_roles(source.tensors, lambda one, other: False))
        raise wrong_kind(source, "an encoder or a subject")


def _native(source: Source, choices: Choices) -> Iterator[str]:
    yield _row("format", "encoder, native format")
    yield from _tensors(source)
    yield from _config(choose(read_config(source), choices, source.where))
    yield from _chosen(choices)
    yield from _loaded(load_native(source, choices))


def _official(source: Source, choices: Choices) -> Iterator[str]:
    yield _row("format", "encoder without this project's metadata: keys read by rule")
    yield from _tensors(source)
    reading = read_source(source)
    yield from _reading(source, reading)
    encoder = load_official(source, choices)
    yield from _config(encoder.config)
    yield _row(
        "from shapes", "base, hidden_size, all sizes of the resampler but dim_head and heads"
    )
    yield from (_row("assumed", assumption) for assumption in assumptions(choices))
    yield from _chosen(choices)
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


def _tensors(header: Header | Source) -> Iterator[str]:
    if isinstance(header, Source) and len(header.headers) > 1:
        yield _row("files", ", ".join(part.where for part in header.headers))
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
    layout = encoder.family.layout_of(dims)
    yield _row("sites", f"{len(dims)}: {encoder.family.describe_sites(dims)}")
    yield _row("layout", layout.label if layout else "none of the known base models'")
    yield _row(
        "widths", ", ".join(f"{n} sites of {dim}" for dim, n in Counter(dims.values()).items())
    )
    yield _row("hash", f"sha256 {encoder_hash(encoder)}")


def _chosen(choices: Choices) -> Iterator[str]:
    return (_row("chosen", f"{name} {value}") for name, value in choices.items())


def _reading(source: Source, reading: Reading) -> Iterator[str]:
    yield from (_row("set aside", _group(source, group)) for group in reading.aside)
    yield from (_row("key", f"{key} -> {native}") for native, key in reading.names.items())
    yield from (
        _row("key", f"{key} -> {native}, as {reading.names[native]}")
        for native, keys in reading.doubles.items()
        for key in keys
    )
    yield from (_row("key", f"{key} -> not explained") for key in reading.unexplained)
    yield from (
        _row("key", f"{key} -> set aside: {group.label}")
        for group in reading.aside
        for key in group.keys
    )
    yield from (_row("problem", problem) for problem in reading.problems)
    yield from (_row("note", note) for note in reading.notes)


def _group(source: Source, group: Group) -> str:
    specs = [source.tensors[key] for key in group.keys]
    size = sum(spec.stop - spec.start for spec in specs)
    under = f" under {group.prefix}" if group.prefix else ""
    return f"{group.label}{under}: {len(specs)} tensors, {size:,} bytes"


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _row(label: str, text: str) -> str:
    return f"{label:<15}{text}"
