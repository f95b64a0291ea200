"""Files of a whole training module: the encoder is found, the rest is set aside, nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import Tensors, comfyui_place, diffusers_place, ip_adapter, processors, write
from hypothesis import given, settings
from hypothesis import strategies as st
from training_states import (
    OTHERS,
    autoencoder,
    comfyui_unet,
    diffusers_unet,
    in_list,
    in_processors,
    layer,
    merged_places,
    noise,
    only,
    prefixed,
    text_encoder,
)

from nested_core.checkpoint import describe, encoder_hash, load_encoder
from nested_core.encoder import Encoder
from nested_core.families.unet_sites import AttentionSite


def is_even(site: AttentionSite, _: str) -> bool:
    return (site.number + site.index) % 2 == 0


def is_odd(site: AttentionSite, p: str) -> bool:
    return not is_even(site, p)


def accelerate_state(encoder: Encoder) -> Tensors:
    """IP-Adapter's training module: frozen UNet, resampler, and shared tensors under one name."""
    trained = merged_places(encoder, "image_proj_model.", in_processors(diffusers_place))
    return prefixed("unet.", diffusers_unet(encoder)) | trained


# Where the trained projections stand: functions of the encoder that give the names.
PLACEMENTS: dict[str, Callable[[Encoder], list[Any]]] = {
    "processors": lambda e: [in_processors(diffusers_place)],
    "comfyui processors": lambda e: [in_processors(comfyui_place, "unet.", "{}_proj_nested")],
    "modules over all processors": lambda e: [in_list(e, 1, 2)],
    "modules over the cross-attentions": lambda e: [in_list(e, 0, 1, "nested_layers.")],
    "both": lambda e: [in_processors(diffusers_place), in_list(e, 1, 2)],
    "a list over all and one over the cross-attentions": lambda e: [
        only(in_list(e, 1, 2), is_even),
        in_list(e, 0, 1, "nested."),
    ],
    "half and half": lambda e: [
        only(in_processors(diffusers_place), is_even),
        only(in_list(e, 1, 2), is_odd),
    ],
    "halves of a list without gaps": lambda e: [
        only(in_processors(diffusers_place), is_odd),
        only(in_list(e, 0, 1), is_even),
    ],
    "keys here, values there": lambda e: [
        only(in_processors(diffusers_place), lambda _, p: p == "k"),
        only(in_list(e, 1, 2), lambda _, p: p == "v"),
    ],
    "all, and some again": lambda e: [
        in_processors(diffusers_place),
        only(in_list(e, 1, 2), is_even),
    ],
}
UNETS: dict[str, Callable[[Encoder], Tensors]] = {
    "none": lambda e: {},
    "diffusers": lambda e: prefixed("unet.", diffusers_unet(e)),
    "comfyui": lambda e: prefixed("model.diffusion_model.", comfyui_unet(e)),
    "comfyui, bare": lambda e: prefixed("unet.", comfyui_unet(e)),
    "compiled": lambda e: prefixed("unet._orig_mod.", diffusers_unet(e)),
    "top": diffusers_unet,
}
RESAMPLERS = ["image_proj_model.", "image_proj.", "resampler.", "ip_adapter.image_proj_model.", ""]
wrappers = st.lists(
    st.sampled_from(["module.", "model.", "state_dict.", "_orig_mod.", "net.", "checkpoint/"]),
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(
    placement=st.sampled_from(list(PLACEMENTS)),
    unet=st.sampled_from(list(UNETS)),
    resampler=st.sampled_from(RESAMPLERS),
    others=st.sets(st.sampled_from(list(OTHERS))),
    wrapper=wrappers.map("".join),
    half=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_every_whole_state_gives_exactly_its_encoder(
    tmp_path_factory: Any,
    encoders: Any,
    placement: str,
    unet: str,
    resampler: str,
    others: set[str],
    wrapper: str,
    half: bool,
    random: Any,
):
    encoder = encoders["sd15"]
    tensors = merged_places(encoder, resampler, *PLACEMENTS[placement](encoder))
    tensors |= UNETS[unet](encoder)
    for name in others:
        tensors |= OTHERS[name]()
    rows = list(prefixed(wrapper, tensors).items())
    random.shuffle(rows)
    if half:
        rows = [(key, t.half() if t.is_floating_point() else t) for key, t in rows]
    path = write(tmp_path_factory.getbasetemp() / "state.safetensors", dict(rows))
    weights = load_encoder(path).state_dict()
    expected = encoder.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor.half() if half else tensor)


@pytest.mark.parametrize("placement", list(PLACEMENTS))
def test_the_placements_are_told_on_sdxl_too(tmp_path: Path, encoders: Any, placement: str):
    encoder = encoders["sdxl"]
    tensors = merged_places(encoder, "image_proj_model.", *PLACEMENTS[placement](encoder))
    path = write(tmp_path / "state.safetensors", tensors | UNETS["diffusers"](encoder))
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoder)


@pytest.mark.parametrize(("first", "step"), [(1, 2), (0, 1)])
def test_a_list_is_counted_over_the_files_own_unet(
    tmp_path: Path, encoders: Any, make_encoder: Any, first: int, step: int
):
    """A base model that nobody knows; its own names and widths tell the places."""
    rows = [("input", (1, 2), 4), ("middle", (0,), 12), ("output", (3, 4, 5), 8)]
    dims = {AttentionSite(block, n, 0): width for block, numbers, width in rows for n in numbers}
    encoder = make_encoder(encoders["sd15"].config, dims)
    tensors = merged_places(encoder, "resampler.", in_list(encoder, first, step))
    tensors |= prefixed("unet.", diffusers_unet(encoder))
    loaded = load_encoder(write(tmp_path / "state.safetensors", tensors))
    assert loaded.site_dims == encoder.site_dims
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in encoder.state_dict().items())


# ---- two tensors for one thing


def test_different_tensors_for_one_projection_are_refused_with_their_difference(
    encoders: Any, refused: Any
):
    encoder = encoders["sdxl"]
    both = [in_processors(diffusers_place), in_list(encoder, 1, 2)]
    tensors = accelerate_state(encoder) | merged_places(encoder, "image_proj_model.", *both)
    weight = tensors["adapter_modules.7.to_v_ip.weight"]
    weight[3, 2] += 0.25
    message = refused(tensors)
    assert (
        "Two tensors for sites.input.5.1.to_v.weight: "
        "unet.down_blocks.1.attentions.1.transformer_blocks.1.attn2.processor.to_v_ip.weight and "
        "adapter_modules.7.to_v_ip.weight; they differ by up to 0.25, expected one, or equal ones"
        in message
    )


def test_a_resampler_under_two_names_must_be_equal(tmp_path: Path, encoders: Any, refused: Any):
    tensors = accelerate_state(encoders["sd15"])
    twice = {
        key.replace("image_proj_model.", "module.resampler."): tensor.clone()
        for key, tensor in tensors.items()
    }
    path = write(tmp_path / "state.safetensors", tensors | twice)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoders["sd15"])
    twice["module.resampler.norm_out.bias"] += 2.0
    message = refused(tensors | twice)
    assert "image_proj_model.norm_out.bias and module.resampler.norm_out.bias" in message
    assert "they differ by up to 2" in message
    twice["module.resampler.norm_out.bias"] = torch.zeros(7)
    assert "module.resampler.norm_out.bias; of different shapes" in refused(tensors | twice)


def test_a_list_that_fits_in_two_ways_is_told_by_its_doubles_or_refused(
    encoders: Any, refused: Any, tmp_path: Path
):
    """SDXL's places 24 to 53 are equally wide in both orders, and all of them have names, too."""
    encoder = encoders["sdxl"]
    in_middle = only(
        in_list(encoder, 0, 1), lambda site, _: site.block == "output" and site.number < 3
    )
    tensors = merged_places(encoder, "resampler.", in_processors(diffusers_place), in_middle)
    path = write(tmp_path / "state.safetensors", tensors)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoder)
    tensors["adapter_modules.30.to_k_ip.weight"] += 1
    assert (
        "can be read as SDXL counted 0, 1, 2, ... in the order down, up, middle; or as"
        in refused(tensors)
    )


# ---- averages


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"ema.{key}",
        lambda key: f"ema_model.module.{key}",
        lambda key: f"ema_{key}",
        lambda key: f"state_dict_ema.{key}",
        lambda key: f"model_ema.{key.replace('.', '')}",
    ],
)
def test_averaged_copies_are_set_aside(tmp_path: Path, encoders: Any, rename: Any):
    tensors = accelerate_state(encoders["sd15"])
    copies = {rename(key): tensor + 1 for key, tensor in tensors.items()}
    copies |= {"ema.shadow_params.0": noise(3, 3), "ema.decay": noise(), "ema.num_updates": noise()}
    path = write(tmp_path / "state.safetensors", tensors | copies)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoders["sd15"])
    assert "averaged copy (EMA)" in "\n".join(describe(path))


def test_an_average_alone_is_the_encoder(tmp_path: Path, encoders: Any):
    tensors = prefixed("ema.", accelerate_state(encoders["sd15"]))
    path = write(tmp_path / "state.safetensors", tensors)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoders["sd15"])


# ---- what is refused


def test_a_base_models_own_projections_are_not_taken_for_nested_ones(encoders: Any, refused: Any):
    encoder = encoders["sd15"]
    tensors = merged_places(encoder, "image_proj_model.", lambda site, p: "")
    message = refused(tensors | prefixed("unet.", diffusers_unet(encoder)))
    # The kind of file is told by a resampler beside keys and values, whose they are by the rules.
    assert "Nothing found for the key and value projections, only the base model's own" in message


def test_plain_projections_without_a_base_model_are_read(tmp_path: Path, encoders: Any):
    encoder = encoders["sd15"]
    names = in_processors(diffusers_place, word="to_{}")
    tensors = merged_places(
        encoder, "resampler.", lambda site, p: names(site, p).replace(".processor", "")
    )
    path = write(tmp_path / "state.safetensors", tensors)
    assert encoder_hash(load_encoder(path)) == encoder_hash(encoder)


def test_a_base_models_proj_in_is_not_taken_for_a_missing_one_of_the_resampler(
    encoders: Any, refused: Any
):
    tensors = accelerate_state(encoders["sd15"])
    del tensors["image_proj_model.proj_in.weight"]
    assert "Nothing found for resampler.proj_in.weight" in refused(tensors)


@pytest.mark.parametrize(
    "key",
    [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        "unet.down_blocks.0.gate.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_q_ip.weight",
        "image_proj_model.vq_scale",
        "image_encoder.adapter.weight",
    ],
)
def test_what_no_rule_explains_is_refused_inside_a_known_part_too(
    encoders: Any, refused: Any, key: str
):
    message = refused(accelerate_state(encoders["sd15"]) | {key: torch.zeros(8, 24)})
    assert f"1 keys not explained: {key}." in message


def test_a_part_of_a_whole_that_is_missing_is_named(encoders: Any, refused: Any):
    encoder = encoders["sdxl"]
    halves = PLACEMENTS["half and half"](encoder)
    tensors = merged_places(encoder, "resampler.", *halves)
    for p in "kv":
        del tensors[f"adapter_modules.3.to_{p}_ip.weight"]
    message = refused(tensors)
    assert (
        "numbered places fit no known way of counting beside the 35 that other keys name" in message
    )


def test_messages_stay_short_and_inspect_tells_all(tmp_path: Path, encoders: Any, refused: Any):
    encoder = encoders["sdxl"]
    both = [in_processors(diffusers_place), in_list(encoder, 1, 2)]
    tensors = merged_places(encoder, "resampler.", *both)
    strange = {f"mystery.{'long.' * 40}{number}": noise(2) for number in range(300)}
    for key in tensors:
        if key.startswith("adapter_modules."):
            tensors[key] += 1
    message = refused(tensors | strange)
    assert len(message) < 2000
    assert "138 more problems" in message
    assert "300 keys not explained: " in message
    assert " more. Expected" in message
    lines: list[str] = []
    with pytest.raises(ValueError, match="cannot be read"):
        lines.extend(_collected(describe(tmp_path / "foreign.safetensors"), lines))
    told = "\n".join(lines)
    assert all(f"{key} -> not explained" in told for key in strange)
    assert told.count("Two tensors for ") == 140


def _collected(source: Any, lines: list[str]) -> list[str]:
    for line in source:
        lines.append(line)
    return []


# ---- what `inspect` tells


def test_each_group_is_listed_with_its_count_and_size_and_each_key_in_full(
    tmp_path: Path, encoders: Any
):
    unet = prefixed("module.unet.", diffusers_unet(encoders["sd15"]))
    text = text_encoder("module.text_encoder.")
    tensors = unet | text | autoencoder("module.vae.") | {"global_step": noise()}
    tensors |= processors(encoders["sd15"])
    path = write(tmp_path / "state.safetensors", tensors)
    lines = list(describe(path))
    told = "\n".join(lines)
    for label, group in (
        ("UNet, diffusers' names under module.unet.", unet),
        ("text encoder, token embedding under module.text_encoder.", text),
        ("autoencoder under module.vae.", autoencoder("module.vae.")),
        ("optimiser", {"global_step": noise()}),
    ):
        size = sum(tensor.numel() * tensor.element_size() for tensor in group.values())
        assert f"{label}: {len(group)} tensors, {size:,} bytes" in told
        assert all(any(f" {key} -> set aside" in line for line in lines) for key in group)
    assert told.count("-> set aside") == len(tensors) - len(processors(encoders["sd15"]))


def test_a_released_file_with_a_stray_layer_of_a_unet_proves_no_unet(encoders: Any, refused: Any):
    stray = layer("unet.mid_block.attentions.0.proj_in", 8, 8)
    message = refused(ip_adapter(encoders["sd15"]) | stray)
    assert f"2 keys not explained: {', '.join(sorted(stray))}. Expected" in message
    assert "Two tensors" not in message
