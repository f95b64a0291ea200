"""Packs that run the UNet's blocks by themselves, where the UNet's own wrappers never run."""

from __future__ import annotations

import functools

import composition
import foreign_patches
import pytest
import scenes
import torch
from stand_ins import layers, unet_forwards
from two_subjects import warnings_of
from value_table import ValueTable

STEPS = 4


@pytest.fixture(autouse=True)
def _forget():
    unet_forwards.forget()
    yield
    unet_forwards.forget()


def scene_of(family):
    return scenes.shared_scene(family, STEPS)


@functools.cache
def expected(family, cast, forward):
    """The same forward, with the value table on ordinary replace-patches."""
    scene, cast = scene_of(family), composition.BY_NAME[cast]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, composition.NEGATIVE)]
    slots = composition.naive_slots(scene, scene.subject(), cast)
    table, run = ValueTable(scene, [(texts[0][0][0], slots)], cast.naive_tables), forward()

    def around(apply_model, arguments):
        conditions = arguments["c"]
        options = conditions["transformer_options"]
        table.call(arguments["input"], conditions["c_crossattn"], options)
        return run(apply_model, arguments)

    found = scene.sample(unet_forwards.in_front(table.on_patches(scene.model), around), *texts)
    unet_forwards.forget()
    return found


def _bound(scene, alter, place="behind", cast=composition.ALONE):
    return composition.sample_bound(scene, scene.subject(), alter, place, cast=cast)


@pytest.mark.parametrize(
    "forward, family, cast",
    [
        *((forward, "sdxl", "alone") for forward in unet_forwards.ACTING),
        # Called twice in a step, subjects learn in between where the table does not.
        *(
            (forward, "sd15", "apart")
            for forward in unet_forwards.ACTING
            if forward is not unet_forwards.CallsFirst
        ),
    ],
)
def test_subjects_act_where_replace_patches_do(family, cast, forward, caplog):
    right = expected(family, cast, forward)
    for place in composition.PLACES:
        found = _bound(
            scene_of(family),
            lambda model: unet_forwards.in_front(model, forward()),
            place,
            composition.BY_NAME[cast],
        )
        assert scenes.relative_difference(found, right) < composition.TOLERANCE, place
        unet_forwards.forget()
    bare = foreign_patches.sample_host(
        scene_of(family), lambda m: unet_forwards.in_front(m, forward())
    )
    assert scenes.relative_difference(bare, right) > composition.VISIBLE
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    "forward", [unet_forwards.BlockByBlock, unet_forwards.SkipsBlocksWithKeptOptions]
)
def test_so_they_do_where_a_forward_took_apply_model_s_place(forward, caplog):
    right = expected("sdxl", "alone", forward)
    found = _bound(scene_of("sdxl"), lambda model: unet_forwards.in_place(model, forward()))
    assert scenes.relative_difference(found, right) < composition.TOLERANCE
    assert not warnings_of(caplog)


@pytest.mark.parametrize("place", composition.PLACES)
@pytest.mark.parametrize(
    "forward", [unet_forwards.BlockByBlock, unet_forwards.SkipsBlocksWithKeptOptions]
)
def test_so_they_do_where_a_wrapper_of_the_model_runs_the_blocks(forward, place, caplog):
    right = expected("sdxl", "alone", forward)
    found = _bound(
        scene_of("sdxl"), lambda model: unet_forwards.as_wrapper(model, forward()), place
    )
    assert scenes.relative_difference(found, right) < composition.TOLERANCE
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    "forward", [unet_forwards.BlockByBlock, unet_forwards.KeepsOptions, unet_forwards.KeepsTables]
)
def test_so_they_do_behind_layers_with_a_forward_of_their_own(forward):
    scene = scene_of("sd15")
    texts = [scene.encode(scene.clip, each) for each in (composition.PLAIN, composition.NEGATIVE)]
    slots = composition.naive_slots(scene, scene.subject(), composition.ALONE)
    table, run = ValueTable(scene, [(texts[0][0][0], slots)]), unet_forwards.BlockByBlock()

    def around(apply_model, arguments):
        conditions = arguments["c"]
        table.call(arguments["input"], conditions["c_crossattn"], conditions["transformer_options"])
        return run(apply_model, arguments)

    right = scene.sample(
        unet_forwards.in_front(table.behind(scene.model, layers.by_hand), around), *texts
    )

    def alter(model):
        return unet_forwards.in_front(layers.as_object_patches(model, layers.by_hand), forward())

    found = _bound(scene, alter)
    assert scenes.relative_difference(found, right) < composition.TOLERANCE


@pytest.mark.parametrize(
    "install", [unet_forwards.in_front, unet_forwards.in_place, unet_forwards.as_wrapper]
)
def test_a_forward_without_patches_is_named_once_in_each_sampling(install, caplog):
    scene = scene_of("sdxl")
    model, clip = scene.apply(scene.bind())
    model = install(model, unet_forwards.IgnoresPatches())
    texts = [scene.encode(clip, each) for each in (composition.PROMPT, composition.NEGATIVE)]
    for count in (1, 2):
        found = scene.sample(model, *texts)
        assert len(warnings_of(caplog)) == count
    assert "stand_ins.unet_forwards" in warnings_of(caplog)[-1]
    host = foreign_patches.sample_host(
        scene, lambda model: install(model, unet_forwards.IgnoresPatches())
    )
    assert torch.equal(found, host)


class TestNothingStaleActs:
    """What a pack has kept of one sampling, in another one."""

    KEEPING = pytest.mark.parametrize(
        "forward",
        [
            unet_forwards.KeepsOptions,
            unet_forwards.KeepsTables,
            unet_forwards.SkipsBlocksWithKeptOptions,
        ],
    )
    LAYERS = pytest.mark.parametrize("own_layers", [False, True])

    @staticmethod
    def _alter(forward, own_layers):
        def alter(model):
            if own_layers:
                model = layers.as_object_patches(model, layers.scaled)
            return unet_forwards.in_front(model, forward)

        return alter

    @KEEPING
    @LAYERS
    @pytest.mark.parametrize("other", ["a plain prompt", "a plain model", "a part that is over"])
    def test_of_a_bound_one(self, forward, other, own_layers):
        scene = scene_of("sd15")
        kept = forward()
        model, clip = scene.apply(scene.bind())
        texts = [scene.encode(clip, each) for each in (composition.PROMPT, composition.NEGATIVE)]
        scene.sample(self._alter(kept, own_layers)(model), *texts)
        plain = [scene.encode(clip, each) for each in (composition.PLAIN, composition.NEGATIVE)]
        if other == "a plain prompt":
            found = scene.sample(self._alter(kept, own_layers)(model), *plain)
        elif other == "a plain model":
            found = scene.sample(self._alter(kept, own_layers)(scene.model), *plain)
        else:
            later, clip = scene.apply(scene.bind(start_percent=0.99, end_percent=0.999))
            texts = [
                scene.encode(clip, each) for each in (composition.PROMPT, composition.NEGATIVE)
            ]
            found = scene.sample(self._alter(kept, own_layers)(later), *texts)
        unet_forwards.forget()
        kept = forward()
        for _ in range(2):
            host = foreign_patches.sample_host(scene, self._alter(kept, own_layers))
        if (
            own_layers
        ):  # what was kept and stands there runs to the end of the layer in another order
            assert scenes.relative_difference(found, host) < 1e-5
        else:
            assert torch.equal(found, host)

    @KEEPING
    def test_of_another_subject_s_model(self, forward):
        """There its own acts, and nobody else."""
        scene = scene_of("sd15")
        anna, rex = scene.bind(scene.subject(0)), scene.bind(scene.subject(7))
        kept, sampled = forward(), []
        for fresh in (None, kept, kept):
            if fresh is None:
                unet_forwards.forget()
            for binding in (anna, rex) if fresh else (rex,):
                model, clip = scene.apply(binding)
                texts = [
                    scene.encode(clip, each) for each in (composition.PROMPT, composition.NEGATIVE)
                ]
                sampled.append(
                    scene.sample(unet_forwards.in_front(model, fresh or forward()), *texts)
                )
            unet_forwards.forget()
        assert scenes.relative_difference(sampled[2], sampled[0]) < 1e-6
        assert scenes.relative_difference(sampled[1], sampled[0]) > composition.VISIBLE

    def test_a_copy_of_the_options_copies_no_model(self, monkeypatch):
        """Ours hold the whole UNet."""
        monkeypatch.setattr(torch.nn.Module, "__deepcopy__", _never, raising=False)
        _bound(scene_of("sd15"), lambda m: unet_forwards.in_front(m, unet_forwards.CopiesOptions()))


def _never(self, memo):
    raise AssertionError("a module was copied")


def test_such_a_function_finds_nothing_of_ours_without_a_bound_token():
    seen = []

    def look(apply_model, arguments):
        conditions = arguments["c"]
        options = conditions["transformer_options"]
        seen.append((sorted(conditions), sorted(options), options.get("patches_replace")))
        return apply_model(arguments["input"], arguments["timestep"], **conditions)

    scene = scene_of("sdxl")
    model, clip = scene.apply(scene.bind())
    plain = [scene.encode(clip, each) for each in (composition.PLAIN, composition.NEGATIVE)]
    scene.sample(unet_forwards.in_front(model, look), *plain)
    ours, seen[:] = list(seen), []
    scene.sample(unet_forwards.in_front(scene.model, look), *plain)
    # The table of all wrappers is the host's; ours are in it, as everybody's.
    hosts = [(a, sorted({*b, "wrappers"}), c) for a, b, c in seen]
    assert [(a, sorted({*b, "wrappers"}), c) for a, b, c in ours] == hosts
