"""Packs that give attention layers a forward of their own: it runs, and the subjects are added."""

from __future__ import annotations

import functools
from dataclasses import replace

import comfy.ldm.modules.attention
import composition
import foreign_patches
import pytest
import scenes
import tiny
import torch
from stand_ins import layers
from stand_ins.observers import Observer
from two_subjects import warnings_of
from value_table import ValueTable

CrossAttention = comfy.ldm.modules.attention.CrossAttention


def _more(make, model):
    return layers.with_extra_text(model) if make is layers.normalised_guidance else model


def _install(way, make, count=None):
    """As an `Alter`."""
    return lambda model: _more(make, layers.WAYS[way](model, make, count))


def _bound(scene, alter, place="behind", cast=composition.ALONE, prompt=None, **binding):
    """Sampled with our Apply; also where Apply's own bindings are made after the other pack came."""
    model = alter(scene.model) if place == "before" else scene.model
    subjects = composition.bindings(scene, scene.subject(), cast, **binding)
    model, clip = scene.apply(*subjects, model=model, separation=cast.separation)
    model = alter(model) if place == "behind" else model
    texts = (prompt or cast.prompt, composition.NEGATIVE)
    return scene.sample(model, *(scene.encode(clip, each) for each in texts))


@functools.cache
def expected(family, make, cast_name="alone", alter=None):
    """The value table behind such layers."""
    scene, cast = scenes.shared_scene(family), composition.BY_NAME[cast_name]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    slots = composition.naive_slots(scene, scene.subject(), cast)
    table = ValueTable(scene, [(texts[0][0][0], slots)], cast.naive_tables)
    model = scene.model if alter is None else alter(scene.model)
    return scene.sample(_more(make, table.behind(model, make)), *texts)


def _scene(family):
    """With a UNet of its own: what some packs do cannot be taken back."""
    return replace(scenes.shared_scene(family), model=tiny.unet(family))


class TestAForwardOfItsOwn:
    @composition.FAMILIES_AND_NAMES
    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("name", layers.MAKERS)
    def test_the_subjects_are_added_behind_it_and_it_runs_once(self, family, cast, name, place):
        scene, count = scenes.shared_scene(family), layers.Count()
        make = layers.MAKERS[name]
        alter = _install("object patches", make, count)
        found = _bound(scene, alter, place, composition.BY_NAME[cast])
        right = expected(family, make, cast)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert count.calls == scene.steps * len(scene.sites)
        bare = foreign_patches.sample_host(scene, alter, composition.BY_NAME[cast].plain)
        assert scenes.relative_difference(bare, right) > composition.VISIBLE

    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("way", layers.WAYS)
    def test_in_whatever_way_it_came(self, way, place, caplog):
        count = layers.Count()
        alter = _install(way, layers.scaled, count)
        found = _bound(_scene("sdxl"), alter, place)
        assert scenes.relative_difference(found, expected("sdxl", layers.scaled)) < 1e-4
        assert count.calls == 2 * 11
        assert not warnings_of(caplog)

    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("way", layers.WAYS)
    def test_without_a_bound_token_it_is_the_host_s_with_it(self, way, place):
        alter = _install(way, layers.scaled)
        found = _bound(_scene("sdxl"), alter, place, prompt=composition.PLAIN)
        assert torch.equal(found, foreign_patches.sample_host(_scene("sdxl"), alter))

    @pytest.mark.parametrize("prompt", [composition.PLAIN, composition.PROMPT])
    def test_the_class_s_forward_is_exchanged(self, prompt, monkeypatch):
        right, host = expected("sdxl", layers.scaled), CrossAttention.forward
        plain = foreign_patches.sample_host(_scene("sdxl"), _install("instances", layers.scaled))

        def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
            size = 1.0 if context is None else 0.6
            return size * host(self, x, context, value, mask, transformer_options or {})

        monkeypatch.setattr(CrossAttention, "forward", forward)
        found = _bound(_scene("sdxl"), composition.unaltered, prompt=prompt)
        if prompt == composition.PLAIN:
            assert torch.equal(found, plain)
        else:
            assert scenes.relative_difference(found, right) < composition.TOLERANCE

    @pytest.mark.parametrize("prompt", [composition.PLAIN, composition.PROMPT])
    def test_hooks_around_the_layer(self, prompt):
        scene = _scene("sdxl")
        found = _bound(scene, layers.by_hooks, prompt=prompt)
        if prompt == composition.PLAIN:
            assert torch.equal(found, foreign_patches.sample_host(scene, composition.unaltered))
        else:
            right = expected("sdxl", layers.hooked)
            assert scenes.relative_difference(found, right) < composition.TOLERANCE

    def test_only_some_layers(self):
        def some(layer):
            chosen = layer.to_q.in_features == 64 and layer.heads == 8
            return (layers.scaled if chosen else _own)(layer)

        def alter(model):
            model = model.clone()
            for path, block in layers.blocks_of(model).values():
                if block.n_heads == 8 and block.attn2.to_q.in_features == 64:
                    model.add_object_patch(f"{path}.attn2.forward", layers.scaled(block.attn2))
            return model

        found = _bound(_scene("sd15"), alter)
        assert scenes.relative_difference(found, expected("sd15", some)) < composition.TOLERANCE
        assert scenes.relative_difference(expected("sd15", _own), found) > composition.VISIBLE

    def test_a_replace_patch_bypasses_it_as_it_does_in_the_host(self):
        scene, count = _scene("sdxl"), layers.Count()
        patch = foreign_patches.Patch()

        def alter(model):
            model = layers.as_object_patches(model, layers.scaled, count)
            return foreign_patches.put_on(model, patch, foreign_patches.sites_of(scene)[:3])

        _bound(scene, alter)
        assert len(patch.sites) == 2 * 3
        assert count.calls == 2 * (11 - 3)

    def test_patches_of_the_layer_s_inputs_and_output_stay_around_both(self):
        def inputs(query, key, value, options):
            return query * 1.1, key * 0.9, value.flip(1)

        def alter(model):
            model = model.clone()
            model.set_model_attn2_patch(inputs)
            model.set_model_attn2_output_patch(lambda out, options: out * 0.5)
            return model

        found = _bound(
            _scene("sdxl"), lambda m: alter(_install("object patches", layers.scaled)(m))
        )
        right = expected("sdxl", layers.scaled, alter=alter)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE


class TestLayersWithoutProjections:
    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("prompt", [composition.PLAIN, composition.PROMPT])
    def test_they_stay_as_they_are_and_are_named_once(self, prompt, place, caplog):
        alter = _closed
        found = _bound(_scene("sdxl"), alter, place, prompt=prompt)
        assert torch.equal(found, foreign_patches.sample_host(_scene("sdxl"), alter))
        if prompt == composition.PROMPT:
            (warning,) = warnings_of(caplog)
            assert "ClosedLayer" in warning


class TestNothingOfOursStands:
    """Where no row of a call is bound, whoever looks on sees what the host shows without us."""

    @pytest.mark.parametrize("place", composition.PLACES)
    @pytest.mark.parametrize("way", [None, "object patches"])
    def test_in_a_sampling_without_a_bound_token(self, way, place):
        alter = composition.unaltered if way is None else _install(way, layers.scaled)
        ours, hosts = Observer(), Observer()
        _bound(_scene("sdxl"), lambda model: ours.on(alter(model)), place, prompt=composition.PLAIN)
        foreign_patches.sample_host(_scene("sdxl"), lambda model: hosts.on(alter(model)))
        assert ours.seen == hosts.seen
        assert {place for place, *_ in ours.seen} == {"UNet", "patch", "replace-patch", "block"}

    def test_in_the_calls_that_run_without_the_bound_prompt(self):
        """A negative prompt of another length than can be batched runs by itself."""
        scene, ours, hosts = _scene("sdxl"), Observer(), Observer()
        long = "blurry " * 500
        model, clip = scene.apply(scene.bind())
        model = ours.on(model)
        scene.sample(model, scene.encode(clip, composition.PROMPT), scene.encode(clip, long))
        other = _scene("sdxl")
        texts = (other.encode(other.clip, each) for each in (composition.PLAIN, long))
        other.sample(hosts.on(other.model), *texts)
        bare = [each for each in ours.seen if "nested_attention" not in each[1]]
        assert len(bare) == len(hosts.seen) / 2
        assert all(each in hosts.seen for each in bare)

    def test_after_a_binding_s_part_of_the_sampling(self):
        scene, ours, hosts = _scene("sdxl"), Observer(), Observer()
        _bound(scene, ours.on, end_percent=0.1)
        foreign_patches.sample_host(_scene("sdxl"), hosts.on)
        half = len(hosts.seen) // 2
        assert ours.seen[half:] == hosts.seen[half:]
        assert ours.seen[:half] != hosts.seen[:half]


def _own(layer, count=None):
    return lambda *args: CrossAttention.forward(layer, *args)


def _closed(model):
    return layers.as_closed_modules(model, layers.scaled)
