"""A compiled UNet whose attention layers another pack gave a forward of their own."""

from __future__ import annotations

import composition
import pack
import pytest
import scenes
import torch
import torch._dynamo
from stand_ins import layers

# Two layers of one shape: the compiler uses one trace for both.
_UNET = {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 0],
}


@pytest.fixture
def scene():
    torch._dynamo.reset()
    scene = scenes.make_scene_of("sd15", **_UNET)
    scene.steps = 2
    yield scene
    torch._dynamo.reset()


def _compiled(model):
    return pack.run_host(
        "TorchCompileModel", extra="nodes_torch_compile", model=model, backend="eager"
    )


def _sample(scene, model, clip, prompt):
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, composition.NEGATIVE))


@pytest.mark.parametrize("name", ["normalised guidance"])
def test_it_is_right_with_a_bound_token_and_the_host_s_with_it_without_one(scene, name):
    make = layers.MAKERS[name]

    def alter(model):
        model = layers.as_object_patches(model, make)
        return layers.with_extra_text(model) if name == "normalised guidance" else model

    model, clip = scene.apply(scene.bind())
    compiled, plain = _compiled(alter(model)), _compiled(alter(scene.model))
    right = _sample(scene, alter(model), clip, composition.PROMPT)
    host = _sample(scene, plain, clip, composition.PLAIN)
    for _ in range(2):  # each behind the other's traces
        found = _sample(scene, compiled, clip, composition.PROMPT)
        assert scenes.relative_difference(found, right) < 1e-5
        assert torch.equal(_sample(scene, compiled, clip, composition.PLAIN), host)
    assert scenes.relative_difference(host, right) > composition.VISIBLE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
