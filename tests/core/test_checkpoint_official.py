"""Foreign encoder files. All key names are made up: nobody has seen those of the authors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import (
    NAMINGS,
    counted,
    ip_adapter,
    list_down_up_middle,
    named,
    processors,
    write,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nested_core.checkpoint import detect, encoder_hash, load_encoder, save_encoder
from nested_core.errors import CheckpointError
from nested_core.families.unet_sites import AttentionSite

# ---- what is read


@pytest.mark.parametrize("base", ["sdxl", "sd15"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_exactly_the_native_encoder(
    tmp_path: Path, encoders: Any, naming: Any, base: str
):
    encoder = encoders[base]
    foreign = write(tmp_path / "foreign.safetensors", naming(encoder), {"format": "pt"})
    save_encoder(encoder, tmp_path / "native.safetensors")
    native = load_encoder(tmp_path / "native.safetensors")
    loaded = load_encoder(foreign)
    assert detect(foreign) == "official-encoder"
    assert loaded.config == native.config
    assert loaded.site_dims == native.site_dims
    assert encoder_hash(loaded) == encoder_hash(native)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in native.state_dict().items())
    assert loaded.name == "foreign.safetensors"


def test_a_foreign_encoder_keeps_its_precision(tmp_path: Path, encoders: Any):
    tensors = {name: tensor.half() for name, tensor in ip_adapter(encoders["sd15"]).items()}
    loaded = load_encoder(write(tmp_path / "half.safetensors", tensors))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


prefixes = st.from_regex(r"([A-Za-z_]{1,8}\.){0,3}", fullmatch=True)


@settings(max_examples=30, deadline=None)
@given(prefixes, prefixes)
@example("value.keys_and_values.", "key.")
def test_prefixes_do_not_matter(tmp_path_factory: Any, encoders: Any, first: str, second: str):
    tensors = {
        (first if "to_k" in name or "to_v" in name else second) + name: tensor
        for name, tensor in processors(encoders["sd15"]).items()
    }
    path = write(tmp_path_factory.getbasetemp() / "prefixed.safetensors", tensors)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoders["sd15"])


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(tmp_path_factory: Any, encoders: Any, random: Any):
    # Tensors of unequal sizes are stored by size; the header's order is the writer's.
    tensors = list(list_down_up_middle(encoders["sdxl"]).items())
    random.shuffle(tensors)
    path = write(tmp_path_factory.getbasetemp() / "shuffled.safetensors", dict(tensors))
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoders["sdxl"])


def test_names_of_a_model_without_known_layout_are_read_too(
    tmp_path: Path, encoders: Any, make_encoder: Any
):
    dims = {
        AttentionSite(block, number, 0): 8
        for block, numbers in [("input", (1, 2)), ("middle", (0,)), ("output", (0, 1, 2))]
        for number in numbers
    }
    config = replace(encoders["sdxl"].config, base="unknown")
    encoder = make_encoder(config, dims)
    loaded = load_encoder(write(tmp_path / "small.safetensors", processors(encoder)))
    assert encoder_hash(loaded) == encoder_hash(encoder)


def test_layers_in_each_block_are_counted_from_complete_names(
    tmp_path: Path, encoders: Any, make_encoder: Any
):
    # A UNet with one layer in each down block and two in each up block: two blocks a level.
    tensors = {
        name: tensor
        for name, tensor in encoders["sd15"].state_dict().items()
        if name.startswith("resampler.")
    }
    attentions = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"]
    attentions += [f"up_blocks.{block}.attentions.{a}" for block in (0, 1) for a in (0, 1)]
    for place in [*attentions, "mid_block.attentions.0"]:
        for projection in ("to_k", "to_v"):
            key = f"{place}.transformer_blocks.0.attn2.{projection}.weight"
            tensors[key] = torch.randn(8, 24)
    loaded = load_encoder(write(tmp_path / "small.safetensors", tensors))
    texts = [site.text for site in loaded.site_dims]
    assert texts == ["d1.0", "d3.0", "m0.0", "u0.0", "u1.0", "u2.0", "u3.0"]


def test_what_no_tensor_tells_is_ip_adapters_habit(tmp_path: Path, encoders: Any):
    tensors = ip_adapter(encoders["sdxl"])
    config = load_encoder(write(tmp_path / "foreign.safetensors", tensors)).config
    assert config.noun == "person"
    assert config.resampler.dim_head == 64
    assert config.image_encoder.kind == "clip_vision"
    assert config.image_encoder.hidden_size == config.resampler.embedding_dim
    assert config.image_encoder.image_size == 224
    assert config.image_encoder.hidden_state == "penultimate"
    assert (config.value_norm.mode, config.value_norm.scale) == ("per_head", 2.0)


# ---- what is refused


def test_every_unexplained_key_is_listed(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"])
    strange = {f"extra.thing_{letter}": torch.zeros(2) for letter in "abcdefghijklmnop"}
    message = refused(tensors | strange)
    assert "16 keys not explained: " in message
    assert all(key in message for key in strange)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("ip_adapter.1.to_q_ip.weight", (8, 24)),
        ("ip_adapter.1.to_k_ip.bias", (8,)),
        ("ip_adapter.1.to_kv_ip.weight", (8, 24)),
        ("ip_adapter.1.norm_k.weight", (8,)),
        ("ip_adapter.1.key_value.weight", (8, 24)),
        ("image_proj.pos_emb.bias", (24,)),
        ("image_proj.proj_in_2.weight", (8, 24)),
        ("unet.mid_block.attentions.0.proj_in.weight", (8, 8, 1, 1)),
    ],
)
def test_a_parameter_that_the_method_does_not_have_is_not_explained(
    encoders: Any, refused: Any, key: str, shape: tuple[int, ...]
):
    message = refused(ip_adapter(encoders["sdxl"]) | {key: torch.zeros(shape)})
    assert f"1 keys not explained: {key}." in message


def test_self_attention_is_not_explained(encoders: Any, refused: Any):
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    message = refused(processors(encoders["sdxl"]) | {key: torch.zeros(8, 24)})
    assert f"1 keys not explained: {key}." in message


def test_two_tensors_for_one_role_are_both_listed(encoders: Any, refused: Any):
    place = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    tensors = processors(encoders["sdxl"]) | {f"{place}.to_k.weight": torch.zeros(8, 24)}
    message = refused(tensors)
    assert "Two tensors for sites.input.4.0.to_k.weight: " in message
    assert f"{place}.to_k.weight" in message
    assert f"{place}.processor.to_k_ip.weight" in message


def test_two_resamplers_are_refused(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"])
    message = refused(tensors | {"other.latents": torch.zeros(1, 4, 16)})
    assert "Two tensors for resampler.latents: " in message
    assert "image_proj.latents" in message
    assert "other.latents" in message


def test_numbers_with_the_widths_of_no_known_layout_are_refused(encoders: Any, refused: Any):
    tensors = list_down_up_middle(encoders["sd15"])
    for name in list(tensors):
        if name.startswith("nested."):
            tensors[name] = torch.zeros(8, 24)
    message = refused(tensors)
    assert "The places are numbered as SD1.5 counted 0, 1, 2, ... " in message
    assert "but the widths are not those of its layers" in message


def test_two_fitting_ways_of_counting_are_both_named(
    encoders: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
):
    from nested_core.families import unet_places as places

    ways = list(places.known_numberings())
    swapped = {**ways[0].sites, 1: ways[0].sites[3], 3: ways[0].sites[1]}
    both = [*ways, replace(ways[0], label="another way", sites=swapped)]
    monkeypatch.setattr(places, "known_numberings", lambda layouts: iter(both))
    message = refused(ip_adapter(encoders["sdxl"]))
    assert (
        "can be read as SDXL counted 1, 3, 5, ... in the order down, up, middle; or as another way"
        in message
    )


def test_missing_and_surplus_numbers_are_named(encoders: Any, refused: Any):
    tensors = {
        name.replace(".7.", ".140."): tensor
        for name, tensor in ip_adapter(encoders["sdxl"]).items()
        if not name.startswith("ip_adapter.11.")
    }
    message = refused(tensors)
    assert "nearest is SDXL counted 1, 3, 5, ..." in message
    assert "[7, 11] are missing and [140] are too many" in message


def test_a_place_told_by_two_numbers_is_not_guessed(encoders: Any, refused: Any):
    numbers = counted(encoders["sdxl"], 0, 1, "input output middle")
    tensors = named(
        encoders["sdxl"],
        "",
        lambda site, p: f"rows.{numbers[site] // 10}.{numbers[site] % 10}.{p}.weight",
    )
    message = refused(tensors)
    assert "The places of the key and value projections cannot be told" in message
    assert "140 keys not explained: " in message


@pytest.mark.parametrize(
    "changed",
    [
        ("down_blocks.1.attentions.1", "down_blocks.1.attentions.2"),
        ("mid_block.attentions.0", "mid_block.attentions.1"),
        ("up_blocks.0.attentions.2", "up_blocks.0.attentions.3"),
    ],
)
def test_attentions_of_no_stable_diffusion_are_not_guessed(
    encoders: Any, refused: Any, changed: tuple[str, str]
):
    tensors = {
        name.replace(*changed): tensor for name, tensor in processors(encoders["sdxl"]).items()
    }
    assert "The attentions in the names (down_blocks.B.attentions.A, ...) are not" in refused(
        tensors
    )


def test_names_beside_numbers_leave_the_numbers_unexplained(encoders: Any, refused: Any):
    tensors = processors(encoders["sdxl"]) | {"ip_adapter.1.to_k_ip.weight": torch.zeros(8, 24)}
    assert "1 keys not explained: ip_adapter.1.to_k_ip.weight." in refused(tensors)


def test_a_missing_value_projection_is_named(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"])
    del tensors["ip_adapter.1.to_v_ip.weight"]
    assert "1 tensors are missing: sites.input.4.0.to_v.weight." in refused(tensors)


@pytest.mark.parametrize(
    "name", ["latents", "proj_in.weight", "layers.0.0.to_q.weight", "proj_out.weight"]
)
def test_a_missing_part_that_tells_a_size_is_named(encoders: Any, refused: Any, name: str):
    tensors = ip_adapter(encoders["sdxl"])
    del tensors[f"image_proj.{name}"]
    assert f"Nothing found for resampler.{name}" in refused(tensors)


def test_any_other_missing_part_is_named(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"])
    del tensors["image_proj.layers.1.0.to_kv.weight"]
    message = refused(tensors)
    assert "1 tensors are missing: resampler.layers.1.0.to_kv.weight." in message


def test_a_missing_layer_is_named(encoders: Any, refused: Any):
    tensors = {
        name.replace("layers.1.", "layers.2."): tensor
        for name, tensor in ip_adapter(encoders["sdxl"]).items()
    }
    message = refused(tensors)
    assert "11 tensors are missing: resampler.layers.1." in message
    assert "11 tensors do not belong here: resampler.layers.2." in message


def test_a_parameter_of_the_wrong_shape_is_named(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"]) | {"image_proj.norm_out.bias": torch.zeros(25)}
    assert "resampler.norm_out.bias [25], expected [24]" in refused(tensors)


@pytest.mark.parametrize("heads", [2, 12])
def test_attention_that_does_not_divide_into_heads_is_refused(
    encoder_config: Any, make_encoder: Any, sd15_site_dims: Any, refused: Any, heads: int
):
    sizes = replace(encoder_config.resampler, dim_head=8, heads=heads)
    encoder = make_encoder(replace(encoder_config, resampler=sizes), sd15_site_dims)
    expected = f"with attention of width {8 * heads}; expected sizes above 0 and heads of width 64"
    assert expected in refused(ip_adapter(encoder))


def test_an_empty_resampler_is_refused(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"]) | {"image_proj.latents": torch.zeros(1, 0, 16)}
    assert "num_queries=0" in refused(tensors)


def test_nan_in_a_foreign_file_is_refused_by_its_key(encoders: Any, refused: Any):
    tensors = ip_adapter(encoders["sdxl"])
    key = "ip_adapter.9.to_v_ip.weight"
    message = refused(tensors | {key: torch.full_like(tensors[key], float("nan"))})
    assert f"1 tensors with NaN or infinite values: {key};" in message


def test_an_ip_adapter_is_not_taken_for_an_encoder(
    encoders: Any, make_encoder: Any, sd15_site_dims: Any, refused: Any
):
    config = encoders["sd15"].config
    sizes = replace(config.resampler, num_queries=16, output_dim=768)
    tensors = ip_adapter(make_encoder(replace(config, resampler=sizes), sd15_site_dims))
    assert "is an IP-Adapter Plus (16 tokens)" in refused(tensors)


def test_a_file_without_resampler_is_no_encoder(tmp_path: Path, encoders: Any):
    tensors = {
        name: tensor
        for name, tensor in ip_adapter(encoders["sd15"]).items()
        if not name.startswith("image_proj.")
    }
    path = write(tmp_path / "foreign.safetensors", tensors)
    assert detect(path) == "unknown"
    with pytest.raises(
        CheckpointError,
        match=r"expected an encoder file of Nested Attention, found 32 tensors: .*, \.\.\.\.",
    ):
        load_encoder(path)
