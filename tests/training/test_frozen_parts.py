"""The libraries' own models beside an encoder are set aside, whatever stands in front of them."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import AutoencoderKL
from tiny_models import tiny_unet
from transformers import CLIPConfig, CLIPModel

from nested_core.checkpoint.aside import frozen_parts

_CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
MODELS: dict[str, Any] = {
    "UNet, diffusers' names": lambda: tiny_unet("sdxl"),
    "UNet, diffusers' names: sd15": lambda: tiny_unet("sd15"),
    "autoencoder": lambda: AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "image encoder": lambda: CLIPModel(_clip()).vision_model,
    "text encoder, token embedding": lambda: CLIPModel(_clip()).text_model,
}


def _clip() -> CLIPConfig:
    return CLIPConfig(text_config=dict(_CLIP), vision_config=dict(_CLIP), num_hidden_layers=2)


@pytest.mark.parametrize("prefix", ["", "unet.", "module.model.", "state_dict._orig_mod.frozen."])
@pytest.mark.parametrize("label", list(MODELS))
def test_every_parameter_of_the_librarys_model_is_set_aside(label: str, prefix: str):
    keys = {prefix + key for key in MODELS[label]().state_dict()}
    (group,) = frozen_parts(keys)
    assert set(group.keys) == keys
    assert group.label == label.partition(":")[0]


def test_a_whole_clip_model_is_an_image_and_a_text_encoder():
    keys = {f"clip.{key}" for key in CLIPModel(_clip()).state_dict()}
    groups = frozen_parts(keys)
    assert {key for group in groups for key in group.keys} == keys
    assert [group.label for group in groups] == ["image encoder", "text encoder, token embedding"]


def test_a_nested_processor_is_none_of_the_unets():
    unet = tiny_unet("sdxl")
    keys = [f"unet.{key}" for key in unet.state_dict()]
    nested = [
        f"unet.{name}.to_{p}_ip.weight"
        for name in unet.attn_processors
        for p in "kv"
        if "attn2" in name
    ]
    found = {key for group in frozen_parts([*keys, *nested]) for key in group.keys}
    assert found == set(keys)
