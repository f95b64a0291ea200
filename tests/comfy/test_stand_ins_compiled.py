"""A compiled UNet whose attention layers another pack gave a forward of their own."""

from __future__ import annotations

import composition
import pytest
import scenes
import torch
import torch._dynamo
from compiled import as_compiled, fresh_scene
from stand_ins import layers


@pytest.fixture
def scene():
    # Two layers of one shape: the compiler uses one trace for both.
    yield from fresh_scene(transformer_depth_output=[1, 0])


@pytest.mark.parametrize("name", ["normalised guidance"])
def test_it_is_right_with_a_bound_token_and_the_host_s_with_it_without_one(scene, name):
    make = layers.MAKERS[name]

    def alter(model):
        model = layers.as_object_patches(model, make)
        return layers.with_extra_text(model) if name == "normalised guidance" else model

    model, clip = scene.apply(scene.bind())
    compiled, plain = as_compiled(alter(model)), as_compiled(alter(scene.model))
    right = composition.sample_prompt(scene, alter(model), clip, composition.PROMPT)
    host = composition.sample_prompt(scene, plain, clip, composition.PLAIN)
    for _ in range(2):  # each behind the other's traces
        found = composition.sample_prompt(scene, compiled, clip, composition.PROMPT)
        assert scenes.relative_difference(found, right) < 1e-5
        assert torch.equal(
            composition.sample_prompt(scene, compiled, clip, composition.PLAIN), host
        )
    assert scenes.relative_difference(host, right) > composition.VISIBLE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
