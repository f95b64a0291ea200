"""The resampler against its description, written out once more with plain matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_files import ip_adapter, write
from torch.nn import functional

from nested_core.checkpoint import encoder_hash, load_encoder, save_encoder
from nested_core.errors import CheckpointError, SubjectError
from nested_core.resampler import Resampler, ResamplerExtras

EXTRAS = {
    "positions": ResamplerExtras(max_patches=12),
    "pooled queries": ResamplerExtras(num_pooled_queries=3),
    "both": ResamplerExtras(max_patches=9, num_pooled_queries=1),
}


def _described(state, config, features):
    """The file format's words: section by section, no module."""

    def norm(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def heads(x):
        return x.reshape(len(x), -1, config.heads, config.dim_head).transpose(1, 2)

    if "pos_emb.weight" in state:
        features = features + state["pos_emb.weight"][: features.shape[1]]
    image = features @ state["proj_in.weight"].T + state["proj_in.bias"]
    latents = state["latents"].repeat(len(features), 1, 1)
    pool = "to_latents_from_mean_pooled_seq"
    if f"{pool}.1.weight" in state:
        mean = norm(image.sum(1) / image.shape[1], f"{pool}.0")
        pooled = mean @ state[f"{pool}.1.weight"].T + state[f"{pool}.1.bias"]
        latents = torch.cat([pooled.view(len(features), -1, config.dim), latents], 1)
    for layer in range(config.depth):
        name = f"layers.{layer}"
        x, y = norm(image, f"{name}.0.norm1"), norm(latents, f"{name}.0.norm2")
        query = heads(y @ state[f"{name}.0.to_q.weight"].T)
        both = torch.cat([x, y], 1) @ state[f"{name}.0.to_kv.weight"].T
        key, value = (heads(part) for part in both.split(config.heads * config.dim_head, -1))
        weights = (query @ key.mT / config.dim_head**0.5).softmax(-1)
        seen = (weights @ value).transpose(1, 2).flatten(2)
        latents = latents + seen @ state[f"{name}.0.to_out.weight"].T
        hidden = norm(latents, f"{name}.1.0") @ state[f"{name}.1.1.weight"].T
        latents = latents + functional.gelu(hidden) @ state[f"{name}.1.3.weight"].T
    return norm(latents @ state["proj_out.weight"].T + state["proj_out.bias"], "norm_out")


def test_the_resampler_is_the_one_described(make_encoder, encoder_config):
    resampler = make_encoder().resampler
    features = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    expected = _described(resampler.state_dict(), encoder_config.resampler, features)
    found = resampler(features)
    assert found.shape == (3, 4, 24)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_weights_compute_in_the_inputs_precision(make_encoder):
    features = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    half = make_encoder(dtype=torch.float16).resampler
    same = make_encoder(dtype=torch.float16).resampler.float()
    assert half(features).dtype == torch.float32
    assert torch.equal(half(features), same(features))


def test_a_new_resampler_starts_with_finite_tokens(encoder_config):
    tokens = Resampler(encoder_config.resampler)(torch.randn(1, 5, 16))
    assert bool(tokens.isfinite().all())


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_the_newer_resampler_is_the_one_described(make_encoder, encoder_config, extras):
    resampler = make_encoder(extras=extras).resampler
    features = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    expected = _described(resampler.state_dict(), encoder_config.resampler, features)
    found = resampler(features)
    assert found.shape == (3, 4 + extras.num_pooled_queries, 24)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[:, -4:], make_encoder().resampler(features))


def test_more_patches_than_positions_are_refused(make_encoder):
    encoder = make_encoder(extras=EXTRAS["both"])
    with pytest.raises(SubjectError, match=r"gives 10 patch features, but .* positions .* for 9"):
        encoder.encode(torch.randn(1, 10, 16))


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_the_newer_resampler_is_saved_and_read_in_both_formats(
    tmp_path: Path, make_encoder, encoder_config, sd15_site_dims, extras
):
    sizes = replace(encoder_config.resampler, dim_head=64, heads=1)
    config = replace(encoder_config, base="sd15", resampler=sizes)
    encoder = make_encoder(config, sd15_site_dims, extras=extras)
    save_encoder(encoder, tmp_path / "native.safetensors")
    write(tmp_path / "foreign.safetensors", ip_adapter(encoder))
    features = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    for name in ("native", "foreign"):
        loaded = load_encoder(tmp_path / f"{name}.safetensors")
        assert encoder_hash(loaded) == encoder_hash(encoder)
        assert torch.equal(loaded.encode(features), encoder.encode(features))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pos_emb.weight", (9, 24), r"resampler\.pos_emb\.weight \[9, 24\], expected \[9, 16\]"),
        (
            "to_latents_from_mean_pooled_seq.1.bias",
            (24,),
            r"seq\.1\.bias \[24\], expected \[16\]",
        ),
        (
            "to_latents_from_mean_pooled_seq.1.weight",
            (24, 16),
            r"seq\.1\.weight \[24, 16\], expected \[16, 16\]",
        ),
    ],
)
def test_an_optional_part_of_the_wrong_shape_is_named(
    tmp_path: Path, encoders, make_encoder, sd15_site_dims, name, shape, message
):
    encoder = make_encoder(encoders["sd15"].config, sd15_site_dims, extras=EXTRAS["both"])
    tensors = ip_adapter(encoder) | {f"image_proj.{name}": torch.zeros(shape)}
    path = write(tmp_path / "foreign.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(path)


def test_half_of_an_optional_part_is_refused(
    tmp_path: Path, encoders, make_encoder, sd15_site_dims
):
    encoder = make_encoder(encoders["sd15"].config, sd15_site_dims, extras=EXTRAS["both"])
    tensors = ip_adapter(encoder)
    del tensors["image_proj.to_latents_from_mean_pooled_seq.1.weight"]
    path = write(tmp_path / "foreign.safetensors", tensors)
    with pytest.raises(
        CheckpointError, match=r"3 tensors do not belong here: resampler\.to_latents"
    ):
        load_encoder(path)
