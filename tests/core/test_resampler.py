"""The resampler against its description, written out once more with plain matrices."""

from __future__ import annotations

import torch
from torch.nn import functional

from nested_core.resampler import Resampler


def _described(state, config, features):
    """The file format's words: section by section, no module."""

    def norm(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def heads(x):
        return x.reshape(len(x), -1, config.heads, config.dim_head).transpose(1, 2)

    image = features @ state["proj_in.weight"].T + state["proj_in.bias"]
    latents = state["latents"].repeat(len(features), 1, 1)
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
