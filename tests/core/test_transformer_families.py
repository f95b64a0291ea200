"""Families of diffusion transformers: names of sites, where their text and pixels lie, their grids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nested_core.checkpoint import load_encoder, save_encoder
from nested_core.config import EncoderConfig
from nested_core.errors import CheckpointError, SiteError
from nested_core.families.family import Grid
from nested_core.families.transformers import (
    COSMOS_PREDICT2,
    FLUX,
    LUMINA2,
    QWEN_IMAGE,
    SD3,
    TRANSFORMERS,
    WAN,
)
from nested_core.joint import attention_with_log_sum_exp, log_sum_exp

PATHS = {
    "flux": ["double.0", "double.18", "single.0", "single.37"],
    "sd3": ["joint.0", "joint.23"],
    "qwen_image": ["blocks.0", "blocks.59"],
    "lumina2": ["blocks.0", "blocks.29"],
    "cosmos_predict2": ["blocks.0.cross", "blocks.27.cross"],
    "wan": ["blocks.0.cross", "blocks.39.cross"],
}
# As the two libraries name the attention modules of block 3, among others that are none.
MODULES = {
    "flux": [
        ("double.3", "double_blocks.3"),
        ("double.3", "transformer_blocks.3.attn"),
        ("single.3", "single_blocks.3"),
        ("single.3", "single_transformer_blocks.3.attn"),
    ],
    "sd3": [("joint.3", "joint_blocks.3"), ("joint.3", "transformer_blocks.3.attn")],
    "qwen_image": [("blocks.3", "transformer_blocks.3.attn")],
    "lumina2": [("blocks.3", "layers.3.attention"), ("blocks.3", "layers.3.attn")],
    "cosmos_predict2": [
        ("blocks.3.cross", "blocks.3.cross_attn"),
        ("blocks.3.cross", "transformer_blocks.3.attn2"),
    ],
    "wan": [("blocks.3.cross", "blocks.3.cross_attn"), ("blocks.3.cross", "blocks.3.attn2")],
}
EACH = pytest.mark.parametrize("family", TRANSFORMERS, ids=lambda family: family.name)


@EACH
def test_a_path_is_read_and_written(family):
    sites = [family.site(path) for path in PATHS[family.name]]
    assert [site.path for site in sites] == PATHS[family.name]
    assert family.in_network_order(reversed(sites)) == sites
    assert family.site(family.example_path).path == family.example_path


@EACH
@pytest.mark.parametrize("path", ["input.4.0", "double.x", "blocks.03", "blocks.1.cross.2", ""])
def test_another_path_is_refused(family, path):
    with pytest.raises(SiteError, match=r"expected a path such as"):
        family.site(path)


@EACH
def test_modules_of_both_libraries_are_found(family):
    for path, module in MODULES[family.name]:
        names = ["", "norm_out", f"{module}.norm_k", module, "x_embedder.0"]
        assert {site.path: name for site, name in family.sites_of(names).items()} == {path: module}
    with pytest.raises(SiteError, match=rf"family '{family.name}'"):
        family.sites_of(["input_blocks.4.1.transformer_blocks.0.attn2"])


def test_a_selector_is_in_the_familys_own_letters():
    flux = [FLUX.site(f"double.{i}") for i in range(19)] + [
        FLUX.site(f"single.{i}") for i in range(38)
    ]
    assert FLUX.describe_sites(flux) == "d0-18 s0-37"
    assert len(FLUX.parse_sites("").select(flux)) == 57
    assert len(FLUX.parse_sites("d").select(flux)) == 19
    chosen = FLUX.parse_sites("d17-18, s, !s1-37").select(flux)
    assert FLUX.describe_sites(chosen) == "d17-18 s0"
    with pytest.raises(SiteError, match=r"no such block. It has d0-18 s0-37"):
        FLUX.parse_sites("s38").select(flux)
    with pytest.raises(SiteError, match=r"terms like d, s0, d3-5 or !d \(d, s = double, single"):
        FLUX.parse_sites("u3")
    with pytest.raises(SiteError, match=r"runs backwards. Write 1-2"):
        QWEN_IMAGE.parse_sites("b2-1")
    assert WAN.parse_sites("b3").select([WAN.site("blocks.3.cross")])


def test_text_stands_before_the_pixels_or_apart_from_them():
    for family in (FLUX, SD3, QWEN_IMAGE, LUMINA2):
        assert family.text_keys(512 + 96, 512) == slice(0, 512)
        # What is behind the picture are reference pictures and padding.
        assert family.pixel_queries(512 + 96 + 40, 512, 96) == slice(512, 608)
    for family in (COSMOS_PREDICT2, WAN):
        assert family.text_keys(512, 512) == slice(0, 512)
        assert family.pixel_queries(96, 512, 96) == slice(0, 96)


def test_pixels_are_patches_of_a_padded_latent():
    assert FLUX.grids(Grid(1, 17, 12)) == [Grid(1, 9, 6)]
    assert WAN.grid_of(3 * 54, None, Grid(3, 17, 12)) == Grid(3, 9, 6)
    assert WAN.grid_of(3 * 54, (3, 9, 6), None) == Grid(3, 9, 6)
    assert FLUX.grid_of(54, None, None) == Grid(1, 1, 54)


@EACH
def test_a_file_keeps_its_family_and_its_nested_key(
    family, encoder_config: EncoderConfig, make_encoder: Any, tmp_path: Path
):
    config = replace(encoder_config, family=family.name, nested_key="model_norm")
    dims = {family.site(path): 8 for path in PATHS[family.name]}
    save_encoder(make_encoder(config, dims), tmp_path / "one.safetensors")
    loaded = load_encoder(tmp_path / "one.safetensors")
    assert (loaded.config.family, loaded.config.nested_key) == (family.name, "model_norm")
    assert [site.path for site in loaded.site_dims] == PATHS[family.name]
    for path in PATHS[family.name]:
        assert f"sites.{path}.to_k.weight" in loaded.state_dict()
        assert loaded.projections(family.site(path)).to_v.weight.shape[0] == 8


def test_what_older_files_do_not_say_is_left_out(encoder_config: EncoderConfig):
    assert "nested_key" not in encoder_config.to_json()
    text = replace(encoder_config, nested_key="model_norm").to_json()
    assert EncoderConfig.from_json(text, "x").nested_key == "model_norm"
    with pytest.raises(CheckpointError, match=r"config.nested_key is .* one of plain, model_norm"):
        EncoderConfig.from_json(text.replace("model_norm", "rotated"), "x")


@pytest.mark.parametrize("shape", [(1, 1, 1, 9), (2, 1, 7, 9), (1, 3, 1, 9), None])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_the_sum_over_all_keys_is_the_softmax_s(monkeypatch, shape, wants_gradient):
    monkeypatch.setattr("nested_core.joint._MAX_TABLE_ELEMENTS", 2 * 3 * 9 * 2)  # in runs
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 3, each, 4, generator=generator) for each in (7, 9))
    query.requires_grad_(wants_gradient)
    bias = None if shape is None else torch.randn(shape, generator=generator)
    if bias is not None:
        bias[..., 4] = -torch.inf  # padding
    logits = query @ key.mT / 2 + (0.0 if bias is None else bias)
    expected = logits.logsumexp(-1, keepdim=True)
    found = log_sum_exp(query, key, bias)
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == wants_gradient


def test_one_kernel_gives_attention_and_the_sum():
    query, key, value = (torch.randn(1, 2, each, 8, dtype=torch.bfloat16) for each in (5, 9, 9))
    fused = attention_with_log_sum_exp(query, key, value)
    assert fused is not None
    out, found = fused
    assert found.dtype == torch.float32
    logits = query.float() @ key.float().mT * 8**-0.5
    torch.testing.assert_close(found, logits.logsumexp(-1, keepdim=True), atol=1e-2, rtol=0)
    torch.testing.assert_close(out.float(), logits.softmax(-1) @ value.float(), atol=3e-2, rtol=0)
