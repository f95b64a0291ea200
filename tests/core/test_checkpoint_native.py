from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tensors import tensors_of

from nested_core import hashing
from nested_core.checkpoint import detect, encoder_hash, load_encoder, save_encoder, shards
from nested_core.errors import CheckpointError

SITE = "sites.output.3.0.to_k.weight"


@pytest.fixture
def saved(tmp_path: Path, make_encoder: Any) -> Path:
    path = tmp_path / "face.safetensors"
    save_encoder(make_encoder(), path)
    return path


def rewrite(path: Path, tensors: Any = None, **metadata: str | None) -> Path:
    """The file with other tensors or metadata; an entry of None is left out."""
    with safe_open(path, "pt") as file:
        old_metadata = file.metadata()
    entries = {**old_metadata, **metadata}
    tensors = tensors_of(path) if tensors is None else tensors
    save_file(tensors, path, {key: text for key, text in entries.items() if text is not None})
    return path


def config_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_encoder_comes_back_bit_for_bit(tmp_path: Path, make_encoder: Any, dtype: torch.dtype):
    encoder = make_encoder(dtype=dtype)
    save_encoder(encoder, tmp_path / "face.safetensors")
    loaded = load_encoder(tmp_path / "face.safetensors")
    weights, expected = loaded.state_dict(), encoder.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == dtype
        assert torch.equal(weights[name], tensor)
    assert loaded.config == encoder.config
    assert loaded.site_dims == encoder.site_dims


def test_each_tensor_keeps_its_own_precision(tmp_path: Path, make_encoder: Any):
    encoder = make_encoder()
    encoder.resampler.half()
    save_encoder(encoder, tmp_path / "mixed.safetensors")
    loaded = load_encoder(tmp_path / "mixed.safetensors")
    assert loaded.resampler.latents.dtype == torch.float16
    assert loaded.state_dict()[SITE].dtype == torch.float32


def test_weights_that_no_row_order_stores_are_saved_as_they_read(tmp_path: Path, make_encoder: Any):
    encoder = make_encoder()
    weight = encoder.resampler.proj_in.weight
    weight.data = weight.data.t().contiguous().t()
    save_encoder(encoder, tmp_path / "strided.safetensors")
    loaded = load_encoder(tmp_path / "strided.safetensors")
    assert torch.equal(loaded.resampler.proj_in.weight, weight)


def test_weights_that_share_memory_are_saved_apart(tmp_path: Path, make_encoder: Any):
    encoder = make_encoder()
    sites = [encoder.projections(site) for site in encoder.site_dims]
    sites[0].to_v.weight = sites[0].to_k.weight
    buffer = torch.arange(2.0 * 32 * 24)
    sites[1].to_k.weight.data, sites[1].to_v.weight.data = buffer.view(2, 32, 24)
    save_encoder(encoder, tmp_path / "tied.safetensors")
    weights = load_encoder(tmp_path / "tied.safetensors").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())


def test_a_loaded_encoder_is_frozen_named_after_its_file_and_works(saved: Path, make_encoder: Any):
    loaded = load_encoder(saved)
    assert loaded.name == "face.safetensors"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    features = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.encode(features), make_encoder().encode(features))


def test_a_loaded_encoder_outlives_its_file(saved: Path, make_encoder: Any):
    loaded = load_encoder(saved)
    with saved.open("r+b") as file:
        file.truncate(0)
    assert torch.equal(loaded.resampler.latents, make_encoder().resampler.latents)


def test_the_file_is_the_documented_format(saved: Path, make_encoder: Any):
    with safe_open(saved, "pt") as file:
        assert file.metadata() == {
            "format": "nested-attention-encoder",
            "format_version": "1",
            "config": make_encoder().config.to_json(),
        }
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(saved).items()}
    layer = {
        "0.norm1.weight": [16],
        "0.norm1.bias": [16],
        "0.norm2.weight": [16],
        "0.norm2.bias": [16],
        "0.to_q.weight": [16, 16],
        "0.to_kv.weight": [32, 16],
        "0.to_out.weight": [16, 16],
        "1.0.weight": [16],
        "1.0.bias": [16],
        "1.1.weight": [64, 16],
        "1.3.weight": [16, 64],
    }
    sites = {"input.4.0": 16, "middle.0.0": 32, "middle.0.1": 32, "output.3.0": 16}
    assert shapes == {
        "resampler.latents": [1, 4, 16],
        "resampler.proj_in.weight": [16, 16],
        "resampler.proj_in.bias": [16],
        **{f"resampler.layers.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()},
        "resampler.proj_out.weight": [24, 16],
        "resampler.proj_out.bias": [24],
        "resampler.norm_out.weight": [24],
        "resampler.norm_out.bias": [24],
        **{f"sites.{s}.to_{p}.weight": [dim, 24] for s, dim in sites.items() for p in "kv"},
    }


def test_a_native_file_is_told_by_its_metadata(saved: Path):
    assert detect(saved) == "native-encoder"
    assert detect(str(saved)) == "native-encoder"


def test_saving_replaces_the_file_and_leaves_no_other(saved: Path, make_encoder: Any):
    save_encoder(make_encoder(seed=1), saved)
    assert torch.equal(
        load_encoder(saved).resampler.latents, make_encoder(seed=1).resampler.latents
    )
    assert os.listdir(saved.parent) == ["face.safetensors"]


def test_saving_makes_the_folder(tmp_path: Path, make_encoder: Any):
    save_encoder(make_encoder(), tmp_path / "new" / "face.safetensors")
    assert detect(tmp_path / "new" / "face.safetensors") == "native-encoder"


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync"])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(
    saved: Path, make_encoder: Any, monkeypatch: pytest.MonkeyPatch, broken: str
):
    before = saved.read_bytes()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left.* is not full"):
        save_encoder(make_encoder(seed=1), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["face.safetensors"]


def test_a_diverged_encoder_never_replaces_a_good_file(saved: Path, make_encoder: Any):
    before = saved.read_bytes()
    encoder = make_encoder()
    encoder.resampler.proj_out.bias[3] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"1 tensors with NaN or infinite values: resampler\.proj_out\.bias;"
    ):
        save_encoder(encoder, saved)
    assert saved.read_bytes() == before


def test_double_precision_is_not_written(tmp_path: Path, make_encoder: Any):
    with pytest.raises(CheckpointError, match=r"torch\.float64.*expected F32, F16, BF16"):
        save_encoder(make_encoder(dtype=torch.float64), tmp_path / "double.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8])
def test_other_types_are_refused_by_name(saved: Path, dtype: torch.dtype):
    tensors = tensors_of(saved)
    rewrite(saved, {**tensors, SITE: tensors[SITE].to(dtype)})
    with pytest.raises(
        CheckpointError,
        match=rf"^face\.safetensors: 1 tensors of another type: {SITE} \(\w+\); expected F32, F16",
    ):
        load_encoder(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(
    saved: Path, dtype: torch.dtype, value: float
):
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(saved).items()}
    tensors[SITE][1, 2] = value
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values: {SITE}; .* earlier copy"):
        load_encoder(saved)


def test_missing_and_foreign_tensors_are_named_with_their_counts(saved: Path):
    tensors = tensors_of(saved)
    del tensors[SITE]
    del tensors["resampler.norm_out.bias"]
    tensors["sites.output.3.0.to_q.weight"] = torch.zeros(1)
    rewrite(saved, tensors)
    with pytest.raises(
        CheckpointError,
        match=r"2 tensors are missing: resampler\.norm_out\.bias, sites\.output\.3\.0\.to_k\.weight"
        r"; 1 tensors do not belong here: sites\.output\.3\.0\.to_q\.weight\.",
    ):
        load_encoder(saved)


def test_a_wrong_shape_is_named_with_the_expected_one(saved: Path):
    tensors = tensors_of(saved)
    rewrite(saved, {**tensors, "resampler.latents": torch.zeros(1, 5, 16)})
    with pytest.raises(
        CheckpointError, match=r"resampler\.latents \[1, 5, 16\], expected \[1, 4, 16\]"
    ):
        load_encoder(saved)


def test_keys_and_values_of_a_site_have_the_same_width(saved: Path):
    tensors = tensors_of(saved)
    rewrite(saved, {**tensors, SITE: torch.zeros(17, 24)})
    with pytest.raises(CheckpointError, match=r"to_v\.weight \[16, 24\], expected \[17, 24\]"):
        load_encoder(saved)


def test_a_long_list_is_cut_to_eight_names_and_its_count(saved: Path):
    tensors = {
        name: tensor for name, tensor in tensors_of(saved).items() if ".layers.1." not in name
    }
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match="11 tensors are missing: ") as caught:
        load_encoder(saved)
    assert str(caught.value).count("resampler.layers.1.") == 8
    assert ", .... The file is incomplete" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "sites.output.3.to_k.weight",
        "sites.left.3.0.to_k.weight",
        "sites.output.03.0.to_k.weight",
        "sites.output.3.0.to_k.bias",
    ],
)
def test_a_name_of_no_site_does_not_belong_here(saved: Path, name: str):
    rewrite(saved, {**tensors_of(saved), name: torch.zeros(16, 24)})
    with pytest.raises(CheckpointError, match=rf"1 tensors do not belong here: {name}\."):
        load_encoder(saved)


def test_a_file_without_sites_is_refused(saved: Path):
    tensors = {n: t for n, t in tensors_of(saved).items() if not n.startswith("sites.")}
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match="holds no attention site"):
        load_encoder(saved)


@pytest.mark.parametrize("shape", [(0, 24), (70000, 0)])
def test_a_site_without_a_sensible_width_is_refused(saved: Path, shape: tuple[int, int]):
    tensors = tensors_of(saved)
    for name in (SITE, SITE.replace("to_k", "to_v")):
        tensors[name] = torch.zeros(shape)
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=r"sites have widths from \d+ to \d+, expected 1 to"):
        load_encoder(saved)


@pytest.mark.parametrize("version", ["2", "", "1.0", " 1"])
def test_another_format_version_says_to_update(saved: Path, version: str):
    rewrite(saved, format_version=version)
    with pytest.raises(
        CheckpointError, match=rf"has format version '{version}', expected '1'\..*update the pack"
    ):
        load_encoder(saved)


@pytest.mark.parametrize("entry", ["format_version", "config"])
def test_missing_metadata_is_named(saved: Path, entry: str):
    rewrite(saved, **{entry: None})
    with pytest.raises(CheckpointError, match=rf"the metadata has no '{entry}' \(it has .*format"):
        load_encoder(saved)


def test_a_configuration_of_other_sizes_is_refused(saved: Path):
    config = config_of(saved)
    config["resampler"]["depth"] = 3
    rewrite(saved, config=json.dumps(config))
    with pytest.raises(CheckpointError, match=r"11 tensors are missing: resampler\.layers\.2\.0"):
        load_encoder(saved)


@pytest.mark.parametrize(
    ("entry", "size", "limit"),
    [("depth", 10**9, 64), ("num_queries", 10**12, 16384), ("heads", 2**62, 256)],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    saved: Path, entry: str, size: int, limit: int
):
    config = config_of(saved)
    config["resampler"][entry] = size
    rewrite(saved, config=json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"config\.resampler\.{entry} is {size}, expected at most {limit} "
    ):
        load_encoder(saved)


def test_a_file_replaced_while_it_is_read_is_refused(
    saved: Path, make_encoder: Any, monkeypatch: pytest.MonkeyPatch
):
    original = shards.read_weights

    def replace_then_read(header: Any, names: Any) -> Any:
        save_encoder(make_encoder(seed=1), saved)
        return original(header, names)

    monkeypatch.setattr(shards, "read_weights", replace_then_read)
    with pytest.raises(CheckpointError, match="was replaced while it was read"):
        load_encoder(saved)


# ---- the hash


def test_the_hash_is_the_documented_sha256(saved: Path):
    digest = hashlib.sha256()
    with safe_open(saved, "pt") as file:
        config = file.metadata()["config"]
    for name, tensor in sorted(tensors_of(saved).items()):
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{name} F32 {shape}\n".encode() + tensor.numpy().tobytes())
    digest.update(config.encode())
    assert encoder_hash(load_encoder(saved)) == digest.hexdigest()


def test_the_hash_is_that_of_the_content_whether_loaded_or_made(saved: Path, make_encoder: Any):
    assert encoder_hash(load_encoder(saved)) == encoder_hash(make_encoder())


def test_weights_precision_and_configuration_each_change_the_hash(make_encoder: Any):
    encoder = make_encoder()
    config = encoder.config
    hashes = {
        encoder_hash(encoder),
        encoder_hash(make_encoder(seed=1)),
        encoder_hash(make_encoder(dtype=torch.bfloat16)),
        encoder_hash(make_encoder(dtype=torch.float16)),
        encoder_hash(make_encoder(config=replace(config, noun="dog"))),
        encoder_hash(make_encoder(config=replace(config, base="other"))),
    }
    assert len(hashes) == 6


def test_a_file_is_hashed_once_until_it_is_replaced(
    saved: Path, make_encoder: Any, monkeypatch: pytest.MonkeyPatch
):
    computed: list[str] = []
    original = hashing._computed_hash

    def count(encoder: Any) -> str:
        computed.append(encoder.name)
        return original(encoder)

    monkeypatch.setattr(hashing, "_computed_hash", count)
    first = encoder_hash(load_encoder(saved))
    assert encoder_hash(load_encoder(saved)) == first
    assert len(computed) == 1
    save_encoder(make_encoder(seed=1), saved)
    assert encoder_hash(load_encoder(saved)) != first
    assert len(computed) == 2


def test_an_encoder_without_a_file_is_hashed_once(
    make_encoder: Any, monkeypatch: pytest.MonkeyPatch
):
    encoder = make_encoder()
    first = encoder_hash(encoder)
    monkeypatch.setattr(hashing, "_computed_hash", lambda encoder: pytest.fail("hashed again"))
    assert encoder_hash(encoder) == first


def test_encoders_load_inside_inference_mode_as_comfyui_runs_nodes(saved: Path, make_encoder: Any):
    with torch.inference_mode():
        loaded = load_encoder(saved)
        assert encoder_hash(loaded) == encoder_hash(make_encoder())
