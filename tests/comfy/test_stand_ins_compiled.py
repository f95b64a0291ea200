"""A compiled UNet whose attention layers another pack gave a forward of their own."""

from __future__ import annotations

import beside
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
    right = beside.sample_prompt(scene, alter(model), clip, beside.PROMPT)
    host = beside.sample_prompt(scene, plain, clip, beside.PLAIN)
    for _ in range(2):  # each behind the other's traces
        found = beside.sample_prompt(scene, compiled, clip, beside.PROMPT)
        assert scenes.relative_difference(found, right) < 1e-5
        assert torch.equal(beside.sample_prompt(scene, compiled, clip, beside.PLAIN), host)
    assert scenes.relative_difference(host, right) > beside.VISIBLE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
