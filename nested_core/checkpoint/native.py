"""Encoder files in this project's own format, version 1 (see the README for its layout)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from ..config import EncoderConfig
from ..encoder import Encoder
from ..errors import CheckpointError, SiteError
from ..families import AnyFamily, family_named
from ..hashing import remember_files
from ..resampler import ResamplerExtras
from ..sites import Site
from .choices import Choices, choose
from .safetensors_file import Header, TensorSpec
from .shards import Source
from .weights import listing, write_weights

ENCODER_FORMAT = "nested-attention-encoder"
FORMAT_VERSION = "1"

_SITE_NAME = re.compile(r"sites\.(.+)\.to_[kv]\.weight")
# Far above any real encoder's, and low enough that no product with other sizes overflows.
_MAX_WIDTH = 65536


def load_native(source: Source, choices: Choices) -> Encoder:
    """The encoder of a native file, in the file's precision.

    Raises:
        CheckpointError: version, configuration, tensors, shapes or values are not the format's.
    """
    names = {name: name for name in source.tensors}
    return assemble(source, choose(read_config(source), choices, source.where), names)


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> None:
    """Writes an encoder in the native format and its own precision, replacing `path` when complete.

    Raises:
        CheckpointError: weights are not finite or not of a floating type, or the disk refuses.
    """
    metadata = {
        "format": ENCODER_FORMAT,
        "format_version": FORMAT_VERSION,
        "config": encoder.config.to_json(),
    }
    write_weights(path, encoder.state_dict(), metadata)


def read_config(source: Source) -> EncoderConfig:
    """The configuration in a native file's metadata, after a look at the format's version."""
    check_version(source)
    return EncoderConfig.from_json(metadata_entry(source, "config"), source.where)


def check_version(header: Header | Source) -> None:
    """Raises CheckpointError where the file's format version is not the one this code reads."""
    version = metadata_entry(header, "format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{header.where}: has format version '{version}', expected '{FORMAT_VERSION}'. "
            "A newer version of this pack may read it: update the pack."
        )


def metadata_entry(header: Header | Source, key: str) -> str:
    """One entry of the metadata; CheckpointError where it is missing."""
    if key not in header.metadata:
        keys = ", ".join(sorted(header.metadata)) or "nothing"
        raise CheckpointError(
            f"{header.where}: the metadata has no '{key}' (it has {keys}). The file was changed "
            "by a tool that drops metadata: get the original."
        )
    return header.metadata[key]


def assemble(source: Source, config: EncoderConfig, names: Mapping[str, str]) -> Encoder:
    """An encoder from a file whose tensors are known by their native names.

    Args:
        names: for each native name the file's name of that tensor.

    Raises:
        CheckpointError: the tensors are not exactly those of the configuration and the sites named,
            or their values are no weights.
    """
    specs = {native: source.tensors[name] for native, name in names.items()}
    encoder = _skeleton(source.where, config, specs)
    _check_tensors(source.where, encoder, specs)
    weights = source.read(names.values())
    encoder.load_state_dict({native: weights[name] for native, name in names.items()}, assign=True)
    remember_files(encoder, source.file_keys)
    return encoder


def site_dims(specs: Mapping[str, TensorSpec], family: AnyFamily) -> dict[Site, int]:
    """The inner width of each site that the native names tell of; other names are left out."""
    dims: dict[Site, int] = {}
    for name, spec in specs.items():
        match = _SITE_NAME.fullmatch(name)
        try:
            site = family.site(match[1]) if match else None
        except SiteError:
            continue  # reported as a tensor that does not belong here
        if site is not None and spec.shape:
            dims.setdefault(site, spec.shape[0])
    return dims


def _skeleton(where: str, config: EncoderConfig, specs: Mapping[str, TensorSpec]) -> Encoder:
    """The encoder that the file should hold, without memory for its weights."""
    family = family_named(config.family)
    dims = site_dims(specs, family)
    if not dims:
        raise CheckpointError(
            f"{where}: holds no attention site; expected tensors such as "
            f"sites.{family.example_path}.to_k.weight. Export the encoder again with its sites."
        )
    narrowest, widest = min(dims.values()), max(dims.values())
    if narrowest < 1 or widest > _MAX_WIDTH:
        raise CheckpointError(
            f"{where}: sites have widths from {narrowest} to {widest}, expected 1 to {_MAX_WIDTH}. "
            "The file is damaged: get it again."
        )
    extras = _extras(specs, config.resampler.dim)
    with torch.device("meta"):
        return Encoder(config, dims, name=where, extras=extras)


def _extras(specs: Mapping[str, TensorSpec], dim: int) -> ResamplerExtras:
    """The sizes of the resampler's optional parts; 0 where the file has none of their tensors."""
    positions = specs.get("resampler.pos_emb.weight")
    pooled = specs.get("resampler.to_latents_from_mean_pooled_seq.1.weight")
    return ResamplerExtras(
        max_patches=positions.shape[0] if positions and positions.shape else 0,
        num_pooled_queries=pooled.shape[0] // dim if pooled and pooled.shape else 0,
    )


def _check_tensors(where: str, encoder: Encoder, specs: Mapping[str, TensorSpec]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    shapes = {name: spec.shape for name, spec in specs.items()}
    wrong = [
        f"{name} {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    labelled = {
        "tensors are missing": sorted(expected.keys() - shapes.keys()),
        "tensors do not belong here": sorted(shapes.keys() - expected.keys()),
        "tensors have the wrong shape": wrong,
    }
    problems = [listing(label, names) for label, names in labelled.items() if names]
    if problems:
        raise CheckpointError(
            f"{where}: the tensors are not those of its configuration and sites. "
            f"{'; '.join(problems)}. The file is incomplete, or its configuration is another "
            "encoder's: get it again or export it again."
        )
