"""An encoder in several files: any of them, or their index, stands for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import Tensors, processors, write
from safetensors import safe_open
from safetensors.torch import load_file

from nested_core.checkpoint import (
    describe,
    detect,
    encoder_hash,
    load_encoder,
    save_encoder,
    source_files,
)
from nested_core.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(tensors, metadata, with_index)`: three shards and their index; their folder."""

    def run(
        tensors: Tensors, metadata: Mapping[str, str] | None = None, with_index: bool = True
    ) -> Path:
        weight_map = {name: SHARDS[number % 3] for number, name in enumerate(tensors)}
        for shard in SHARDS:
            part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
            write(tmp_path / shard, part, dict(metadata or {"format": "pt"}))
        if with_index:
            data = {"metadata": {"total_size": 1}, "weight_map": weight_map}
            (tmp_path / INDEX).write_text(json.dumps(data))
        return tmp_path

    return run


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads((folder / INDEX).read_text())
    change(data)
    (folder / INDEX).write_text(json.dumps(data))
    return folder / INDEX


@pytest.mark.parametrize(
    ("chosen", "with_index"),
    [(INDEX, True), *((shard, with_index) for shard in SHARDS for with_index in (True, False))],
)
def test_any_part_stands_for_the_whole(save: Save, encoders: Any, chosen: str, with_index: bool):
    folder = save(processors(encoders["sd15"]), with_index=with_index)
    assert detect(folder / chosen) == "official-encoder"
    loaded = load_encoder(folder / chosen)
    assert encoder_hash(loaded) == encoder_hash(encoders["sd15"])
    assert loaded.name == chosen
    assert f"files          {', '.join(SHARDS)}" in list(describe(folder / chosen))


@pytest.mark.parametrize("chosen", [INDEX, SHARDS[1]])
def test_a_native_encoder_may_be_sharded_too(
    save: Save, tmp_path: Path, make_encoder: Any, chosen: str
):
    save_encoder(make_encoder(), tmp_path / "whole.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        folder = save(make_encoder().state_dict(), file.metadata())
    assert detect(folder / chosen) == "native-encoder"
    assert encoder_hash(load_encoder(folder / chosen)) == encoder_hash(make_encoder())


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("chosen", [SHARDS[0], SHARDS[2]])
def test_a_missing_shard_is_named(save: Save, encoders: Any, chosen: str, with_index: bool):
    folder = save(processors(encoders["sd15"]), with_index=with_index)
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"'{SHARDS[1]}' is missing from .*Put all"):
        load_encoder(folder / chosen)


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere.safetensors",
        "/etc/passwd.safetensors",
        "..\\elsewhere.safetensors",
        "C:elsewhere.safetensors",
        "sub/elsewhere.safetensors",
        "elsewhere.bin",
        "..",
        "",
        "a\x00.safetensors",
        3,
        None,
        ["a.safetensors"],
    ],
)
def test_an_index_reaches_for_nothing_outside_its_folder(save: Save, encoders: Any, name: Any):
    folder = save(processors(encoders["sd15"]))
    write(folder.parent / "elsewhere.safetensors", {"latents": torch.zeros(1)})
    index = change_index(folder, lambda data: data["weight_map"].update(latents=name))
    with pytest.raises(CheckpointError, match=r"expected the plain name of a \.safetensors file"):
        load_encoder(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no 'weight_map'"),
        (f'{{"weight_map": {"1" * 1_000_000}}}', "has no 'weight_map'"),
        ("{}", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": []}', "has no 'weight_map'"),
        (
            json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(1001)}}),
            "names 1,001 shards, expected at most 1000",
        ),
    ],
)
def test_a_damaged_index_is_refused(save: Save, encoders: Any, text: str, message: str):
    folder = save(processors(encoders["sd15"]))
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder / SHARDS[0])


def test_index_and_shards_must_agree(save: Save, encoders: Any):
    folder = save(processors(encoders["sd15"]))
    key = "image_proj_model.latents"
    moved = change_index(folder, lambda data: data["weight_map"].update({key: SHARDS[1]}))
    with pytest.raises(CheckpointError, match=rf"not in the shard that the index says: {key}"):
        load_encoder(moved)
    left_out = change_index(folder, lambda data: data["weight_map"].pop(key))
    with pytest.raises(
        CheckpointError, match=rf"tensors of the shards are not in the index: {key}"
    ):
        load_encoder(left_out)


def test_shards_of_different_files_are_refused(save: Save, encoders: Any):
    tensors = processors(encoders["sd15"])
    folder = save(tensors, with_index=False)
    write(folder / SHARDS[1], tensors, {"format": "pt"})
    with pytest.raises(CheckpointError, match="tensors are in two shards: "):
        load_encoder(folder / SHARDS[0])
    folder = save(tensors, with_index=False)
    write(folder / SHARDS[1], {"one": torch.zeros(1)}, {"format": "nested-attention-encoder"})
    with pytest.raises(CheckpointError, match="metadata differ in 'format'"):
        load_encoder(folder / SHARDS[0])


@pytest.mark.parametrize("replaced", SHARDS)
def test_a_replaced_shard_is_another_file(save: Save, encoders: Any, replaced: str):
    folder = save(processors(encoders["sd15"]))
    first = encoder_hash(load_encoder(folder / SHARDS[0]))
    write(folder / replaced, {name: t + 1 for name, t in load_file(folder / replaced).items()})
    assert encoder_hash(load_encoder(folder / SHARDS[0])) != first


@pytest.mark.parametrize("with_index", [True, False])
def test_the_files_of_a_set_are_known_even_where_some_are_missing(
    save: Save, encoders: Any, with_index: bool
):
    folder = save(processors(encoders["sd15"]), with_index=with_index)
    expected = {folder / name for name in [*SHARDS, *([INDEX] if with_index else [])]}
    (folder / SHARDS[2]).unlink()
    assert set(source_files(folder / SHARDS[0])) == expected
    assert source_files(folder / "face.safetensors") == [folder / "face.safetensors"]
    if with_index:
        (folder / INDEX).write_text("{")
        assert source_files(folder / SHARDS[0]) == [folder / INDEX]
