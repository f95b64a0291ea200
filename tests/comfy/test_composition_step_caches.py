"""ComfyUI's step caches, which leave the UNet out at some steps, beside a subject.

Caches that run a part of the UNet's blocks are in `test_stand_ins_unet_forwards.py`.
"""

from __future__ import annotations

import itertools

import composition
import pack
import pytest
import scenes
import torch
from reference_separation import NaiveSeparation
from stand_ins import splits, unet_forwards
from two_subjects import warnings_of
from value_table import Cropped, ValueTable

STEPS = 8
THRESHOLD = 0.2  # the nodes' default
CACHES = pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])


def _cached(node, around=composition.unaltered, threshold=THRESHOLD):
    def alter(model):
        return pack.run_host(
            node,
            extra="nodes_easycache",
            model=around(model),
            reuse_threshold=threshold,
            start_percent=0.0,
            end_percent=1.0,
            verbose=False,
        )

    return alter


def _hyper_tile(model):
    inputs = {"tile_size": 32, "swap_size": 1, "max_depth": 2, "scale_depth": False}
    return pack.run_host("HyperTile", extra="nodes_hypertile", model=model, **inputs)


def _timesteps(scene, alter, place="behind", **sampling):
    """Of the steps at which the UNet runs, in their order, as its first block hears of them."""
    heard = {}

    def hear(_, arguments, __):
        heard[tuple(arguments[0][0].tolist())] = None

    handle = scene.model.model.diffusion_model.time_embed.register_forward_hook(hear)
    try:
        composition.sample_bound(scene, scene.subject(), alter, place, steps=STEPS, **sampling)
    finally:
        handle.remove()
    return list(heard)


def _assert_leaves_steps_out(scene, alter, **sampling):
    """With steps in between that run: there the subjects act anew, and the cache learns of it."""
    steps = _timesteps(scene, composition.unaltered)
    assert len(steps) == STEPS
    for place in composition.PLACES:
        ran = [steps.index(each) for each in _timesteps(scene, alter, place, **sampling)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(ran)]
        assert max(gaps) > 1, (place, ran)


@CACHES
def test_a_step_cache_composes(scene, node, caplog):
    _assert_leaves_steps_out(scene, _cached(node))
    composition.assert_composes(scene, _cached(node), steps=STEPS)
    assert not warnings_of(caplog)


@CACHES
@pytest.mark.parametrize("cast", [composition.ALONE, composition.APART], ids=["alone", "apart"])
def test_a_step_cache_composes_around_tiles(sd15, node, cast, caplog):
    """Each tile that runs has its part of the mask, and what it has learned of who owns a pixel."""
    # To EasyCache, tiles in turn are a picture that changes a lot.
    threshold = 1.0 if node == "EasyCache" else THRESHOLD
    tiles = splits.Tiles(splits.SAME_SIZE)
    alter = _cached(node, lambda model: unet_forwards.in_front(model, tiles), threshold)
    mask = torch.rand(1, 32, 24, generator=torch.Generator().manual_seed(3))
    masked = {"mask": mask}
    _assert_leaves_steps_out(sd15, alter, binding=masked, cast=cast)
    table = _table_in_tiles(sd15, tiles, cast, mask)
    texts = [sd15.encode(sd15.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    expected = sd15.sample(table.on_patches(alter(sd15.model)), *texts, steps=STEPS)
    subject = sd15.subject()
    for place in composition.PLACES:
        found = composition.sample_bound(
            sd15, subject, alter, place, binding=masked, cast=cast, steps=STEPS
        )
        assert scenes.relative_difference(found, expected) < composition.TOLERANCE, place
    assert not warnings_of(caplog)


def _table_in_tiles(scene, tiles, cast, mask):
    """The value table, whose every row has the masks of its tile and, kept apart, a memory of it."""

    def place(row, _):
        return (0, *tiles.now[row][1:])

    def key(slots, options, row):
        return options["cond_or_uncond"][row], repr(tiles.now[row]), 0

    context = scene.encode(scene.clip, cast.plain)[0][0]
    slots = composition.naive_slots(scene, scene.subject(), cast, mask=mask)
    owners = NaiveSeparation(cast.separation, key) if cast.separation else None
    return ValueTable(scene, [(context, slots)], owners, place, Cropped(scenes.SIZE))


@CACHES
def test_a_step_cache_composes_with_tiles_of_self_attention(sd15, node, caplog):
    sd15.height, sd15.width = 16, 16
    alter = _cached(node, _hyper_tile)
    _assert_leaves_steps_out(sd15, alter)
    composition.assert_composes(sd15, alter, steps=STEPS)
    assert not warnings_of(caplog)
