"""Packs that bring transformer blocks of their own, which tell patches little or nothing."""

from __future__ import annotations

import functools

import composition
import foreign_patches
import pytest
import scenes
import torch
from stand_ins import blocks, layers
from two_subjects import warnings_of
from value_table import Cropped, ValueTable

MASK = (torch.arange(32)[:, None] + torch.arange(24)[None] < 26).float()[None]
WHOLE = (0, list(range(16)), list(range(12)))


def _blocks(told):
    return lambda model: blocks.on_model(model, told)


@functools.cache
def expected(family, cast, told, masked=False, patched=False):
    scene, cast = scenes.shared_scene(family), composition.BY_NAME[cast]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    settings = {"mask": MASK} if masked else {}
    slots = composition.naive_slots(scene, scene.subject(), cast, **settings)
    see = {"place_of": lambda row, rows: WHOLE, "see": Cropped(scenes.SIZE)} if masked else {}
    table = ValueTable(scene, [(texts[0][0][0], slots)], cast.naive_tables, **see)
    base = _smaller if patched else None
    return scene.sample(table.on_patches(_blocks(told)(scene.model), base), *texts)


def _smaller(query, key, value, options):
    return 0.7 * foreign_patches.attention(
        query, key, value, {"n_heads": 8, "attn_precision": None}
    )


def _bound(family, alter, place="behind", cast="alone", **inputs):
    scene = scenes.shared_scene(family)
    return composition.sample_bound(
        scene, scene.subject(), alter, place, cast=composition.BY_NAME[cast], binding=inputs
    )


@pytest.mark.parametrize("told", blocks.TOLD)
@composition.FAMILIES_AND_NAMES
def test_subjects_act_beside_them_as_in_the_value_table(family, cast, told, caplog):
    right = expected(family, cast, told)
    for place in composition.PLACES:
        found = _bound(family, _blocks(told), place, cast)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE, place
    assert not warnings_of(caplog)


@pytest.mark.parametrize("told", blocks.TOLD)
def test_without_a_bound_token_they_are_the_host_s(told):
    scene = scenes.shared_scene("sdxl")
    model, clip = scene.apply(scene.bind())
    texts = (scene.encode(clip, each) for each in (composition.PLAIN, composition.NEGATIVE))
    found = scene.sample(_blocks(told)(model), *texts)
    assert torch.equal(
        found, foreign_patches.sample_host(scenes.shared_scene("sdxl"), _blocks(told))
    )


def test_patches_called_with_no_options_at_all():
    found = _bound("sd15", blocks.without_arguments)
    right = expected("sd15", "alone", "nothing")
    assert scenes.relative_difference(found, right) < composition.TOLERANCE


@pytest.mark.parametrize("told", ["only heads", "nothing", "no shapes"])
@pytest.mark.parametrize("cast", composition.BY_NAME)
def test_masks_find_their_grid_where_no_shape_is_told(cast, told):
    found = _bound("sd15", _blocks(told), cast=cast, mask=MASK)
    right = expected("sd15", cast, told, masked=True)
    assert scenes.relative_difference(found, right) < composition.TOLERANCE
    without = expected("sd15", cast, told)
    assert scenes.relative_difference(without, right) > composition.VISIBLE


@pytest.mark.parametrize("told", ["no precision", "nothing"])
def test_a_replace_patch_within_them_is_the_base(told):
    def alter(model):
        return foreign_patches.put_on(
            _blocks(told)(model), _smaller, foreign_patches.sites_of(scenes.shared_scene("sd15"))
        )

    found = _bound("sd15", alter)
    right = expected("sd15", "alone", told, patched=True)
    assert scenes.relative_difference(found, right) < composition.TOLERANCE


def test_a_block_of_no_class_that_the_host_knows(caplog):
    """In the place of the host's block, with its parts and a forward of its own."""

    class Block(torch.nn.Module):
        def __init__(self, site, block):
            super().__init__()
            self._forward = blocks.OwnForward(site, self, "only heads")
            for name, part in block.named_children():
                setattr(self, name, part)
            self.n_heads, self.d_head = block.n_heads, block.d_head
            self.attn_precision = None

        def forward(self, x, context=None, transformer_options=None):
            return self._forward(x, context, transformer_options)

    def alter(model):
        model = model.clone()
        for site, (path, block) in layers.blocks_of(model).items():
            model.add_object_patch(path, Block(site, block))
        return model

    found = _bound("sd15", alter)
    right = expected("sd15", "alone", "only heads")
    assert scenes.relative_difference(found, right) < composition.TOLERANCE
    assert not warnings_of(caplog)


@pytest.mark.parametrize("told", ["everything", "no precision", "no shapes"])
def test_a_layer_with_a_forward_of_its_own_inside_such_a_block(told):
    """There the block must say where it is: patches around a layer cannot know it otherwise."""

    def alter(model):
        return _blocks(told)(layers.as_object_patches(model, layers.scaled))

    scene = scenes.shared_scene("sd15")
    texts = [scene.encode(scene.clip, each) for each in (composition.PLAIN, composition.NEGATIVE)]
    slots = composition.naive_slots(scene, scene.subject(), composition.ALONE)
    table = ValueTable(scene, [(texts[0][0][0], slots)])
    right = scene.sample(_blocks(told)(table.behind(scene.model, layers.scaled)), *texts)
    found = _bound("sd15", alter)
    assert scenes.relative_difference(found, right) < composition.TOLERANCE


@pytest.mark.parametrize("told", ["no place", "nothing"])
def test_where_such_a_block_does_not_say_where_it_is_one_warning_does(told, caplog):
    def alter(model):
        return _blocks(told)(layers.as_object_patches(model, layers.scaled))

    found = _bound("sd15", alter)
    assert torch.equal(found, foreign_patches.sample_host(scenes.shared_scene("sd15"), alter))
    (warning,) = warnings_of(caplog)
    assert "OwnForward" in warning
