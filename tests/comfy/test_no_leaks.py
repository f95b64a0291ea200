"""Nothing is left behind: not in what Apply was given, not in what sampling leaves, not in memory."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping, MutableSequence, Set
from dataclasses import fields

import composition
import pack
import pytest
import scenes
import torch

kv_cache = pack.module("nodes.bridge.model.kv_cache")
Encoder = pack.module("nested_core.encoder").Encoder
Subject = pack.module("nested_core.subject").Subject

_PACK = Encoder.__module__.removesuffix(".nested_core.encoder")


def _snapshot(value):
    """Containers by content, tensors by identity and content, everything else by identity."""
    if isinstance(value, dict):
        return {key: _snapshot(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_snapshot(each) for each in value]
    if isinstance(value, torch.Tensor):
        return id(value), value.clone().flatten().tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)


_PATCHER = (
    "patches object_patches weight_wrapper_patches model_options attachments additional_models "
    "callbacks wrappers injections hook_patches patches_uuid"
).split()


def _patcher_state(patcher):
    return {name: _snapshot(getattr(patcher, name)) for name in _PATCHER}


def _clip_state(clip):
    inner = {
        name: _snapshot(vars(each))
        for name, each in vars(clip.tokenizer).items()
        if hasattr(each, "__dict__")
    }
    return type(clip), _snapshot(vars(clip)), inner, _patcher_state(clip.patcher)


def _fields(binding):
    return {field.name: _snapshot(getattr(binding, field.name)) for field in fields(binding)}


def _foreign(model):
    model = model.clone()
    model.set_model_attn2_replace(lambda query, *_: query, "middle", 0)
    model.set_model_attn2_output_patch(lambda output, _: output)
    model.add_wrapper_with_key("apply_model", "foreign", lambda run, *a, **k: run(*a, **k))
    return model


@pytest.mark.smoke
def test_apply_and_sampling_leave_their_inputs_alone(scene):
    given = _foreign(scene.model)
    binding = scene.bind(mask=torch.rand(1, 9, 9))
    state = _patcher_state(given), _clip_state(scene.clip), _fields(binding)
    model, clip = scene.apply(binding, model=given)
    assert (_patcher_state(given), _clip_state(scene.clip), _fields(binding)) == state
    applied = _patcher_state(model), _clip_state(clip)

    positive, negative = (
        scene.encode(clip, composition.PROMPT),
        scene.encode(clip, composition.NEGATIVE),
    )
    conditionings = _snapshot([positive, negative])
    scene.sample(model, positive, negative)
    assert _snapshot([positive, negative]) == conditionings
    assert (_patcher_state(given), _clip_state(scene.clip)) == state[:2]
    # Keys and values are all that sampling adds, and only to the model that it samples.
    applied[0]["additional_models"] = _snapshot(model.additional_models)
    assert (_patcher_state(model), _clip_state(clip)) == applied


def test_apply_on_top_leaves_the_earlier_apply_alone(scene):
    first, first_clip = scene.apply(scene.bind())
    state = _patcher_state(first), _clip_state(first_clip)
    rex = scene.bind(scene.subject(1), "<rex>", "dog")
    second, second_clip = scene.apply(rex, model=first, clip=first_clip)
    assert (_patcher_state(first), _clip_state(first_clip)) == state
    assert _num_registered(second) == _num_registered(first)
    assert len(second_clip.nested_bindings) == 2


def _num_registered(model):
    """How many functions ComfyUI would call for this model."""
    kinds = (model.wrappers, model.callbacks, model.model_options["transformer_options"])
    lists = [each for kind in kinds for each in kind.values() if isinstance(each, dict)]
    functions = sum(len(found) for each in lists for found in each.values())
    return functions + len(model.patches) + len(model.object_patches) + len(model.attachments)


class TestQueueingManyTimes:
    NUM_QUEUES = 100

    def test_gives_the_same_picture_and_grows_nothing(self, sdxl):
        sdxl.height, sdxl.width, sdxl.steps = 8, 8, 2
        others = _live_objects().get(
            "BoundModel", 0
        )  # a compiler's traces keep those of other tests
        subject, rex = sdxl.subject(0), sdxl.subject(1)
        kept, clip = sdxl.apply(sdxl.bind(subject))
        positive, negative = (
            sdxl.encode(clip, composition.PROMPT),
            sdxl.encode(clip, composition.NEGATIVE),
        )
        picture = sdxl.sample(kept, positive, negative)
        registered = _num_registered(kept)
        counts = []
        for nth in range(self.NUM_QUEUES):
            self._run_other_nodes(sdxl, nth, subject, rex)
            again, clip = sdxl.apply(sdxl.bind(subject))
            cases = {
                "nothing run again": (kept, positive),
                "the prompt encoded again": (kept, sdxl.encode(clip, composition.PROMPT)),
                "Apply run again": (again, positive),
            }
            name = list(cases)[nth % len(cases)]
            found = sdxl.sample(cases[name][0], cases[name][1], negative)
            assert torch.equal(found, picture), (nth, name)
            assert _num_registered(kept) == _num_registered(again) == registered
            assert len(kept.get_additional_models()) == 1
            if nth in (self.NUM_QUEUES // 2, self.NUM_QUEUES - 1):
                del again, clip, cases, found
                counts.append(_live_objects())
        assert counts[0]["BoundModel"] == others + 1
        assert counts[0] == counts[1]

    @staticmethod
    def _run_other_nodes(scene, nth, subject, rex):
        """What a user may do between two queues: strength, another subject, prompt, layers."""
        changes = [
            lambda: ([scene.bind(subject, strength=0.1 + nth % 7 * 0.1)], composition.PROMPT),
            lambda: ([scene.bind(rex)], "<anna> " * (nth % 5)),
            lambda: ([scene.bind(subject, sites="u")], composition.PROMPT),
            lambda: ([scene.bind(subject), scene.bind(rex, "<rex>", "dog")], "<rex> and <anna>"),
        ]
        bindings, prompt = changes[nth % len(changes)]()
        model, clip = scene.apply(*bindings)
        if nth % 3:
            model = _foreign(model)
        scene.sample(
            model, scene.encode(clip, prompt), scene.encode(clip, composition.NEGATIVE), steps=1
        )


class TestManyDifferentGraphs:
    """What a server meets in a day: no two alike, and each forgotten when the next is queued."""

    NUM_GRAPHS = 12

    def test_they_leave_nothing_behind(self, sdxl):
        sdxl.height, sdxl.width = 8, 8
        numbers = iter(range(10_000))
        # Twice the same kinds in the same order: the first ones fill what is made once.
        first, second = (self._queue_several(sdxl, numbers) for _ in range(2))
        assert first == second

    def _queue_several(self, scene, numbers):
        for number, _ in zip(numbers, range(self.NUM_GRAPHS), strict=False):
            self._queue(scene, number)
        return _live_objects(), _held_by_modules()

    @staticmethod
    def _queue(scene, number):
        tokens = [f"<{letter}{number}>" for letter in "ab"]
        bindings = [
            scene.bind(
                scene.subject(2 * number + place),
                token,
                f"noun{number % 5}",
                mask=torch.full((1, 8, 8), 0.5) if number % 2 == place else None,
            )
            for place, token in enumerate(tokens)
        ]
        model, clip = scene.apply(*bindings, separation=float(number % 4 > 1))
        record = None
        if number % 3 == 0:
            model, record = pack.run("RecordMaps", model=model)
        positive = scene.encode(clip, f"{tokens[0]} beside {tokens[1]} in picture {number}")
        negative = scene.encode(clip, composition.NEGATIVE)
        if number % 6 == 5:  # interrupted
            model = model.clone()
            model.add_wrapper_with_key("diffusion_model", "interrupts", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                scene.sample(model, positive, negative, steps=1)
            return
        latents = scene.sample(model, positive, negative, steps=1, batch=1 + number % 2)
        if record is not None:
            pack.run("ShowMaps", record=record, samples={"samples": latents})


def _interrupt(*_):
    raise KeyboardInterrupt


def _held_by_modules():
    """How many entries every container and function cache of the pack's modules has."""
    held = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(f"{_PACK}."):
            for name, value in vars(module).items():
                if hasattr(value, "cache_info"):
                    held[module_name, name] = value.cache_info().currsize
                elif isinstance(value, (Mapping, MutableSequence, Set)):
                    held[module_name, name] = len(value)
    return held


def _live_objects():
    """Tensors, and objects of the pack's own classes, by type."""
    gc.collect()
    counts: dict[str, int] = {}
    for each in gc.get_objects():
        kind = type(each)
        if str(kind.__module__).startswith(_PACK) or issubclass(kind, torch.Tensor):
            counts[kind.__qualname__] = counts.get(kind.__qualname__, 0) + 1
    return counts


class TestKeysAndValues:
    """They are projected once for each subject and site, as long as the subject lives."""

    @pytest.fixture
    def projected(self, monkeypatch):
        sites = []
        project = Encoder.project
        monkeypatch.setattr(
            Encoder,
            "project",
            lambda self, site, tokens: sites.append(tuple(site)) or project(self, site, tokens),
        )
        return sites

    @staticmethod
    def _queue(scene, *bindings, prompt=composition.PROMPT):
        model, clip = scene.apply(*bindings)
        return scene.sample(
            model, scene.encode(clip, prompt), scene.encode(clip, composition.NEGATIVE), steps=1
        )

    def test_the_second_queue_projects_nothing(self, scene, projected):
        subject = scene.subject()
        self._queue(scene, scene.bind(subject))
        assert projected == [tuple(site) for site in scene.sites]
        for inputs in ({}, {"strength": 0.5}, {"sites": "u"}, {"end_percent": 0.5}):
            self._queue(scene, scene.bind(subject, **inputs))
            self._queue(scene, scene.bind(subject, "<other>", **inputs), prompt="<other>")
        assert len(projected) == len(scene.sites)

    def test_a_prompt_without_the_token_projects_nothing(self, scene, projected):
        self._queue(scene, scene.bind(), prompt=composition.PLAIN)
        self._queue(scene, scene.bind(strength=0.0))
        assert projected == []

    def test_more_sites_project_what_is_missing(self, scene, projected):
        subject = scene.subject()
        self._queue(scene, scene.bind(subject, sites="u"))
        assert {site[0] for site in projected} == {"output"}
        num_first = len(projected)
        self._queue(scene, scene.bind(subject, sites="!u"))
        assert {site[0] for site in projected[num_first:]} == {"input", "middle"}
        self._queue(scene, scene.bind(subject))
        assert sorted(projected) == sorted(tuple(site) for site in scene.sites)

    def test_sites_that_came_later_give_the_same_picture(self, scene):
        subject = scene.subject()
        self._queue(scene, scene.bind(subject, sites="m"))
        later = self._queue(scene, scene.bind(subject))
        assert torch.equal(later, self._queue(scene, scene.bind(scene.subject())))

    def test_equal_subjects_share_them(self, scene, projected):
        """As when one file is loaded by two nodes."""
        one, other = (scene.subject() for _ in range(2))
        assert one is not other
        self._queue(scene, scene.bind(one), scene.bind(other, "<twin>"), prompt="<anna>, <twin>")
        assert len(projected) == len(scene.sites)

    def test_subjects_of_two_encoders_do_not_share_them(self, scene, projected):
        one = scene.subject()
        twin = scenes.make_encoder(scene.family, scene.model, seed=99)
        other = Subject(one.tokens, twin, one.references, one.noun)
        pictures = [self._queue(scene, scene.bind(each)) for each in (one, other)]
        assert len(projected) == 2 * len(scene.sites)
        assert scenes.relative_difference(*pictures) > composition.VISIBLE

    def test_they_go_with_the_subject(self, scene):
        subject = scene.subject()
        model, clip = scene.apply(scene.bind(subject))
        conditionings = [
            scene.encode(clip, text) for text in (composition.PROMPT, composition.NEGATIVE)
        ]
        scene.sample(model, *conditionings)
        (patcher,) = model.get_additional_models()
        (binding,) = clip.nested_bindings
        watched = [
            weakref.ref(each)
            for each in (subject, binding, patcher, patcher.model, conditionings[0][0][0])
        ]
        del subject, model, clip, conditionings, patcher, binding
        gc.collect()
        assert [each() for each in watched] == [None] * len(watched)

    def test_an_encoder_goes_with_its_last_subject(self, scene):
        encoder = weakref.ref(scene.encoder)
        self._queue(scene, scene.bind())
        scene.encoder = None
        gc.collect()
        assert encoder() is None

    def test_they_stay_while_a_subject_is_edited(self, scene, projected):
        """The node outputs are gone, as when a value changes and ComfyUI drops what hung on it."""
        subject = scene.subject()
        self._queue(scene, scene.bind(subject))
        gc.collect()
        self._queue(scene, scene.bind(subject, token_weight=2.0))
        assert len(projected) == len(scene.sites)
