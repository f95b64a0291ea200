"""Tensors that lie in several files: shards `NAME-00001-of-00003.safetensors` and their index.

Any shard and the index stand for the whole set. The index, `NAME.safetensors.index.json`, says in
`weight_map` which shard holds which tensor (as transformers and diffusers write it); without one,
the shards of that name and number are the set.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..errors import CheckpointError
from .safetensors_file import AGAIN, FileKey, Header, TensorSpec, file_key, open_file, read_header
from .weights import listing, read_weights

_INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{2,6})-of-(?P<count>[0-9]{2,6})\.safetensors")
_PLAIN_NAME = re.compile(r"[^\\/:\x00]*\.safetensors", re.IGNORECASE | re.ASCII)  # no path
_OUR_METADATA = ("format", "format_version", "config")
_MAX_INDEX_BYTES = 32_000_000
_MAX_SHARDS = 1000

FileKeys = tuple[FileKey, ...]


@dataclass(frozen=True)
class Source:
    """Where an encoder's tensors lie: one file, or a set of shards that counts as one.

    Attributes:
        path: the file that was asked for.
        headers: of the file, or of every shard.
        metadata: of all headers together.
        tensors: of all headers together.
        file_keys: what changes when any of the files is replaced.
    """

    path: Path
    headers: tuple[Header, ...]
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorSpec]
    file_keys: FileKeys

    @property
    def where(self) -> str:
        """The file's name, as messages begin."""
        return self.path.name

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, as of `read_weights`; nothing else of the files is read."""
        wanted = set(names)
        weights: dict[str, Tensor] = {}
        for header in self.headers:
            weights |= read_weights(header, [name for name in header.tensors if name in wanted])
        return weights


def open_source(path: str | os.PathLike[str]) -> Source:
    """The file, or the whole set where `path` is a shard or an index.

    Raises:
        CheckpointError: as of `read_header`; a shard is missing or has other tensors than the index
            says; the index is damaged or names a file outside its folder.
    """
    path = Path(path)
    index = _index_of(path)
    if index is None:
        headers = tuple(_header(part, of=path) for part in source_files(path))
        keys: list[FileKey] = []
    else:
        weight_map, key = _read_index(index)
        keys = [key]
        shards = dict.fromkeys(weight_map.values())
        headers = tuple(_header(index.parent / name, of=index) for name in shards)
        _check_index(index, weight_map, headers)
    return Source(
        path,
        headers,
        _merged_metadata(path.name, headers),
        _merged_tensors(path.name, headers),
        (*keys, *(header.file_key for header in headers)),
    )


def source_files(path: Path) -> list[Path]:
    """The files that a change of the set would touch; never fails, and some may not be there."""
    index = _index_of(path)
    if index is not None:
        try:
            names = dict.fromkeys(_read_index(index)[0].values())
        except CheckpointError:
            names = {}
        return [index, *(index.parent / name for name in names)]
    match = _SHARD.fullmatch(path.name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 < count <= _MAX_SHARDS:
        return [path]
    return [
        path.with_name(
            f"{match['stem']}-{number:0{len(match['number'])}}-of-{match['count']}.safetensors"
        )
        for number in range(1, count + 1)
    ]


def _index_of(path: Path) -> Path | None:
    """The index that the path is, or that lies beside a shard."""
    if path.name.lower().endswith(_INDEX_SUFFIX):
        return path
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return None
    index = path.with_name(f"{match['stem']}.safetensors{_INDEX_SUFFIX}")
    return index if index.is_file() else None


def _header(shard: Path, of: Path) -> Header:
    if shard != of and not shard.exists():
        raise CheckpointError(
            f"{of.name}: is one of several files that make one, and '{shard.name}' is missing from "
            f"{shard.parent}. Put all of them into the same folder."
        )
    return read_header(shard)


def _read_index(path: Path) -> tuple[dict[str, str], FileKey]:
    """Which shard holds which tensor; CheckpointError where the index does not say so."""
    with open_file(path) as file:
        key = file_key(path, file)
        text = file.read(_MAX_INDEX_BYTES + 1)
    if len(text) > _MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path.name}: is longer than {_MAX_INDEX_BYTES:,} bytes, expected a short index of "
            f"shards. {AGAIN}"
        )
    try:
        # No number is needed, and reading one of a million digits takes long.
        data: Any = json.loads(text.decode("utf-8"), parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: is not JSON ({error!s:.200}). {AGAIN}") from error
    table = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    weight_map: Any = table.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path.name}: has no 'weight_map' that says which shard holds which tensor. {AGAIN}"
        )
    weight_map = cast("dict[str, Any]", weight_map)
    for name in weight_map.values():
        # An index from a stranger must not reach for files elsewhere.
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(
                f"{path.name}: 'weight_map' names the shard {name!r:.80}, expected the plain name of a "
                ".safetensors file in the same folder. Do not use this index unless you know who "
                "wrote it."
            )
    num_shards = len(set(weight_map.values()))
    if num_shards > _MAX_SHARDS:
        raise CheckpointError(
            f"{path.name}: names {num_shards:,} shards, expected at most {_MAX_SHARDS}. {AGAIN}"
        )
    return weight_map, key


def _check_index(index: Path, weight_map: Mapping[str, str], headers: Iterable[Header]) -> None:
    shard_of = {name: header.path.name for header in headers for name in header.tensors}
    wrong = [name for name, shard in weight_map.items() if shard_of.get(name) != shard]
    unnamed = [name for name in shard_of if name not in weight_map]
    for label, names in (
        ("tensors are not in the shard that the index says", wrong),
        ("tensors of the shards are not in the index", unnamed),
    ):
        if names:
            raise CheckpointError(
                f"{index.name}: {listing(label, (name[:100] for name in names))}. Index and shards "
                f"are of different files. {AGAIN}"
            )


def _merged_tensors(where: str, headers: Iterable[Header]) -> dict[str, TensorSpec]:
    tensors: dict[str, TensorSpec] = {}
    for header in headers:
        doubles = [name[:100] for name in header.tensors if name in tensors]
        if doubles:
            raise CheckpointError(
                f"{where}: {listing('tensors are in two shards', doubles)}. The shards are of "
                f"different files. {AGAIN}"
            )
        tensors |= header.tensors
    return tensors


def _merged_metadata(where: str, headers: Iterable[Header]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for header in headers:
        for entry, text in header.metadata.items():
            if metadata.setdefault(entry, text) != text and entry in _OUR_METADATA:
                raise CheckpointError(
                    f"{where}: the shards' metadata differ in '{entry}'. They are of different files. "
                    f"{AGAIN}"
                )
    return metadata
