"""Packs that run the UNet's blocks by themselves, where the UNet's own wrappers never run."""

from __future__ import annotations

import functools

import beside
import foreign
import pytest
import scenes
import torch
from stand_ins import layers, walks
from two_subjects import warnings_of
from value_table import ValueTable

STEPS = 4


@pytest.fixture(autouse=True)
def _forget():
    walks.forget()
    yield
    walks.forget()


def scene_of(family):
    return scenes.shared_scene(family, STEPS)


@functools.cache
def expected(family, cast, walk):
    """The same walk, with the value table on ordinary replace-patches."""
    scene, cast = scene_of(family), beside.BY_NAME[cast]
    texts = [scene.encode(scene.clip, each) for each in (cast.plain, beside.NEGATIVE)]
    slots = beside.naive_slots(scene, scene.subject(), cast)
    table, run = ValueTable(scene, [(texts[0][0][0], slots)], cast.naive_tables), walk()

    def around(apply_model, arguments):
        conditions = arguments["c"]
        options = conditions["transformer_options"]
        table.call(arguments["input"], conditions["c_crossattn"], options)
        return run(apply_model, arguments)

    found = scene.sample(walks.in_front(table.on_patches(scene.model), around), *texts)
    walks.forget()
    return found


def _bound(scene, alter, place="behind", cast=beside.ALONE):
    return beside.sample_bound(scene, scene.subject(), alter, place, cast=cast)


@pytest.mark.parametrize(
    "walk, family, cast",
    [
        *((walk, "sdxl", "alone") for walk in walks.ACTING),
        # Called twice in a step, subjects learn in between where the table does not.
        *((walk, "sd15", "apart") for walk in walks.ACTING if walk is not walks.CallsFirst),
    ],
)
def test_subjects_act_where_replace_patches_do(family, cast, walk, caplog):
    right = expected(family, cast, walk)
    for place in beside.PLACES:
        found = _bound(
            scene_of(family),
            lambda model: walks.in_front(model, walk()),
            place,
            beside.BY_NAME[cast],
        )
        assert scenes.relative_difference(found, right) < beside.TOLERANCE, place
        walks.forget()
    bare = foreign.sample_host(scene_of(family), lambda m: walks.in_front(m, walk()))
    assert scenes.relative_difference(bare, right) > beside.VISIBLE
    assert not warnings_of(caplog)


@pytest.mark.parametrize("walk", [walks.Walk, walks.SkipsBlocksWithKeptOptions])
def test_so_they_do_where_a_walk_took_apply_model_s_place(walk, caplog):
    right = expected("sdxl", "alone", walk)
    found = _bound(scene_of("sdxl"), lambda model: walks.in_place(model, walk()))
    assert scenes.relative_difference(found, right) < beside.TOLERANCE
    assert not warnings_of(caplog)


@pytest.mark.parametrize("place", beside.PLACES)
@pytest.mark.parametrize("walk", [walks.Walk, walks.SkipsBlocksWithKeptOptions])
def test_so_they_do_where_a_wrapper_of_the_model_walks(walk, place, caplog):
    right = expected("sdxl", "alone", walk)
    found = _bound(scene_of("sdxl"), lambda model: walks.as_wrapper(model, walk()), place)
    assert scenes.relative_difference(found, right) < beside.TOLERANCE
    assert not warnings_of(caplog)


@pytest.mark.parametrize("walk", [walks.Walk, walks.KeepsOptions, walks.KeepsTables])
def test_so_they_do_behind_layers_with_a_forward_of_their_own(walk):
    scene = scene_of("sd15")
    texts = [scene.encode(scene.clip, each) for each in (beside.PLAIN, beside.NEGATIVE)]
    slots = beside.naive_slots(scene, scene.subject(), beside.ALONE)
    table, run = ValueTable(scene, [(texts[0][0][0], slots)]), walks.Walk()

    def around(apply_model, arguments):
        conditions = arguments["c"]
        table.call(arguments["input"], conditions["c_crossattn"], conditions["transformer_options"])
        return run(apply_model, arguments)

    right = scene.sample(walks.in_front(table.behind(scene.model, layers.by_hand), around), *texts)

    def alter(model):
        return walks.in_front(layers.as_object_patches(model, layers.by_hand), walk())

    found = _bound(scene, alter)
    assert scenes.relative_difference(found, right) < beside.TOLERANCE


@pytest.mark.parametrize("install", [walks.in_front, walks.in_place, walks.as_wrapper])
def test_a_walk_without_patches_is_named_once_in_each_sampling(install, caplog):
    scene = scene_of("sdxl")
    model, clip = scene.apply(scene.bind())
    model = install(model, walks.IgnoresPatches())
    texts = [scene.encode(clip, each) for each in (beside.PROMPT, beside.NEGATIVE)]
    for count in (1, 2):
        found = scene.sample(model, *texts)
        assert len(warnings_of(caplog)) == count
    assert "stand_ins.walks" in warnings_of(caplog)[-1]
    host = foreign.sample_host(scene, lambda model: install(model, walks.IgnoresPatches()))
    assert torch.equal(found, host)


class TestNothingStaleActs:
    """What a pack has kept of one sampling, in another one."""

    KEEPING = pytest.mark.parametrize(
        "walk", [walks.KeepsOptions, walks.KeepsTables, walks.SkipsBlocksWithKeptOptions]
    )
    LAYERS = pytest.mark.parametrize("own_layers", [False, True])

    @staticmethod
    def _alter(walk, own_layers):
        def alter(model):
            if own_layers:
                model = layers.as_object_patches(model, layers.scaled)
            return walks.in_front(model, walk)

        return alter

    @KEEPING
    @LAYERS
    @pytest.mark.parametrize("other", ["a plain prompt", "a plain model", "a part that is over"])
    def test_of_a_bound_one(self, walk, other, own_layers):
        scene = scene_of("sd15")
        kept = walk()
        model, clip = scene.apply(scene.bind())
        texts = [scene.encode(clip, each) for each in (beside.PROMPT, beside.NEGATIVE)]
        scene.sample(self._alter(kept, own_layers)(model), *texts)
        plain = [scene.encode(clip, each) for each in (beside.PLAIN, beside.NEGATIVE)]
        if other == "a plain prompt":
            found = scene.sample(self._alter(kept, own_layers)(model), *plain)
        elif other == "a plain model":
            found = scene.sample(self._alter(kept, own_layers)(scene.model), *plain)
        else:
            later, clip = scene.apply(scene.bind(start_percent=0.99, end_percent=0.999))
            texts = [scene.encode(clip, each) for each in (beside.PROMPT, beside.NEGATIVE)]
            found = scene.sample(self._alter(kept, own_layers)(later), *texts)
        walks.forget()
        kept = walk()
        for _ in range(2):
            host = foreign.sample_host(scene, self._alter(kept, own_layers))
        if (
            own_layers
        ):  # what was kept and stands there runs to the end of the layer in another order
            assert scenes.relative_difference(found, host) < 1e-5
        else:
            assert torch.equal(found, host)

    @KEEPING
    def test_of_another_subject_s_model(self, walk):
        """There its own acts, and nobody else."""
        scene = scene_of("sd15")
        anna, rex = scene.bind(scene.subject(0)), scene.bind(scene.subject(7))
        kept, sampled = walk(), []
        for fresh in (None, kept, kept):
            if fresh is None:
                walks.forget()
            for binding in (anna, rex) if fresh else (rex,):
                model, clip = scene.apply(binding)
                texts = [scene.encode(clip, each) for each in (beside.PROMPT, beside.NEGATIVE)]
                sampled.append(scene.sample(walks.in_front(model, fresh or walk()), *texts))
            walks.forget()
        assert scenes.relative_difference(sampled[2], sampled[0]) < 1e-6
        assert scenes.relative_difference(sampled[1], sampled[0]) > beside.VISIBLE

    def test_a_copy_of_the_options_copies_no_model(self, monkeypatch):
        """Ours hold the whole UNet."""
        monkeypatch.setattr(torch.nn.Module, "__deepcopy__", _never, raising=False)
        _bound(scene_of("sd15"), lambda m: walks.in_front(m, walks.CopiesOptions()))


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
    plain = [scene.encode(clip, each) for each in (beside.PLAIN, beside.NEGATIVE)]
    scene.sample(walks.in_front(model, look), *plain)
    ours, seen[:] = list(seen), []
    scene.sample(walks.in_front(scene.model, look), *plain)
    # The table of all wrappers is the host's; ours are in it, as everybody's.
    hosts = [(a, sorted({*b, "wrappers"}), c) for a, b, c in seen]
    assert [(a, sorted({*b, "wrappers"}), c) for a, b, c in ours] == hosts
