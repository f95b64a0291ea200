"""TorchCompileModel: the compiled model is right, and stays right when what it should do changes.

The node tells the compiler to ignore everything in `transformer_options`, where all of ours is: what
was traced for one prompt, subject or layer is used for the next. The backend is PyTorch's "eager",
which runs the traces as they are; inductor takes minutes here (it was tried by hand, see the docs).
"""

from __future__ import annotations

import composition
import pytest
import scenes
import torch
import torch._dynamo
from compiled import as_compiled, fresh_scene

# Uncompiled and compiled run the same kernels; the order of a few sums differs.
_TOLERANCE = 1e-5


@pytest.fixture
def scene():
    # Four layers of one shape: the compiler uses one trace for several of them.
    yield from fresh_scene()


def _bound(scene, place, *bindings, **inputs):
    """The bound CLIP, the bound model, and the same compiled."""
    model, clip = scene.apply(*bindings, **inputs)
    if place == "behind":
        return clip, model, as_compiled(model)
    return clip, model, scene.apply(*bindings, model=as_compiled(scene.model), **inputs)[0]


def _plan(scene):
    """What changes, the bindings, the prompt and options of sampling."""
    anna, rex = scene.subject(0), scene.subject(1, references=2)
    mask = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(2))
    both = [scene.bind(anna), scene.bind(rex, "<rex>", "dog")]
    return [
        ("no bound token", [scene.bind(anna)], composition.PLAIN, {}),
        ("a bound token", [scene.bind(anna)], composition.PROMPT, {}),
        ("another place in the prompt", [scene.bind(anna)], "<anna> at night", {}),
        ("another subject", [scene.bind(rex)], composition.PROMPT, {}),
        ("some layers", [scene.bind(anna, sites="u1,m")], composition.PROMPT, {}),
        (
            "a part of the steps",
            [scene.bind(anna, end_percent=0.4)],
            composition.PROMPT,
            {"steps": 4},
        ),
        ("two subjects", both, "<anna>, <rex>", {}),
        ("a mask", [scene.bind(anna, mask=mask)], composition.PROMPT, {}),
        ("a larger batch", [scene.bind(anna)], composition.PROMPT, {"batch": 3}),
        ("no bound token again", [scene.bind(anna)], composition.PLAIN, {}),
    ]


@pytest.mark.parametrize("place, changes", [("behind", slice(None)), ("before", slice(3))])
def test_a_compiled_model_is_right_whatever_was_traced_before(scene, place, changes):
    seen = []
    for name, bindings, prompt, sampling in _plan(scene)[changes]:
        clip, model, compiled = _bound(scene, place, *bindings)
        expected = composition.sample_prompt(scene, model, clip, prompt, **sampling)
        found = composition.sample_prompt(scene, compiled, clip, prompt, **sampling)
        assert scenes.relative_difference(found, expected) < _TOLERANCE, name
        seen.append(expected)
    assert not torch.equal(seen[0], seen[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("place", composition.PLACES)
def test_who_owns_a_pixel_is_found_anew_at_every_step_of_a_compiled_model(scene, place):
    bindings, sampled = composition.bindings(scene, scene.subject(), composition.APART), []
    for separation in (1.0, 0.0):
        clip, model, compiled = _bound(scene, place, *bindings, separation=separation)
        expected, found = (
            composition.sample_prompt(scene, each, clip, composition.APART.prompt, steps=4)
            for each in (model, compiled)
        )
        assert scenes.relative_difference(found, expected) < _TOLERANCE
        sampled.append(expected)
    assert scenes.relative_difference(*sampled) > composition.VISIBLE


def test_bound_and_plain_models_do_not_use_each_other_s_traces(scene):
    clip, model, compiled = _bound(scene, "behind", scene.bind())
    plain = as_compiled(scene.model)
    runs = {
        "plain first": (plain, scene.model, composition.PLAIN),
        "bound behind a plain one": (compiled, model, composition.PROMPT),
        "plain behind a bound one": (plain, scene.model, composition.PLAIN),
        "bound again": (compiled, model, composition.PROMPT),
    }
    for name, (found, expected, prompt) in runs.items():
        difference = scenes.relative_difference(
            composition.sample_prompt(scene, found, clip, prompt),
            composition.sample_prompt(scene, expected, clip, prompt),
        )
        assert difference < _TOLERANCE, name


def test_a_patch_of_another_pack_may_change_behind_a_compiled_model(scene):
    """Ours stays traced at every layer, and asks for theirs anew at each call."""
    clip, _, compiled = _bound(scene, "behind", scene.bind())
    for scale in (1.0, 0.5):
        foreign = compiled.clone()
        for site in scene.sites:
            foreign.set_model_attn2_replace(lambda q, k, v, options, s=scale: q * s, *site)
        plain = scene.apply(scene.bind())[0]
        for site in scene.sites:
            plain.set_model_attn2_replace(lambda q, k, v, options, s=scale: q * s, *site)
        found, expected = (
            composition.sample_prompt(scene, each, clip, composition.PROMPT)
            for each in (foreign, plain)
        )
        assert scenes.relative_difference(found, expected) < _TOLERANCE


@pytest.mark.parametrize("enabled", [True, False])
def test_the_setting_that_keeps_traces_apart_is_put_back(sd15, enabled):
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(enabled)
    try:
        composition.sample_bound(sd15, sd15.subject(), steps=1)
        assert torch.is_autocast_cache_enabled() == enabled
        with pytest.raises(ZeroDivisionError):
            composition.sample_bound(sd15, sd15.subject(), _failing, steps=1)
        assert torch.is_autocast_cache_enabled() == enabled
    finally:
        torch.set_autocast_cache_enabled(before)


def _failing(model):
    model = model.clone()
    model.set_model_attn2_replace(lambda *_: 1 / 0, "middle", 0)
    return model
