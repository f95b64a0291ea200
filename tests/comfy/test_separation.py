"""Keeping subjects apart: whose value each pixel is given, and what that must leave alone."""

from __future__ import annotations

import gc
import weakref

import composition
import model_files
import pack
import pytest
import reference
import scenes
import tiny
import torch
from two_subjects import VISIBLE

evidence = pack.module("nested_core.call.evidence")
sampling = pack.module("nodes.bridge.model.sampling")
SubjectPerPicture = pack.module("nodes.subject").SubjectPerPicture

PROMPT, PLAIN = composition.APART.prompt, composition.APART.plain
ROUNDING = 1e-5  # batched matrix products sum in another order


def two(scene, anna=None, rex=None, **settings):
    """Bindings of two subjects."""
    return (
        scene.bind(anna or scene.subject(0), "<anna>", "woman", **settings),
        scene.bind(rex or scene.subject(1, references=2), "<rex>", "dog", **settings),
    )


def sampled(scene, bindings, prompt=PROMPT, negative="bad", inputs=None, **options):
    model, clip = scene.apply(*bindings, **(inputs or {}))
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, negative), **options)


def separated(scene, bindings, separation=1.0, **options):
    return sampled(scene, bindings, inputs={"separation": separation}, **options)


def positive_alone(model):
    """Guidance that takes the positive prompt's prediction, while the negative one runs too."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(
        lambda arguments: arguments["cond_denoised"], disable_cfg1_optimization=True
    )
    return model


class TestOff:
    def test_is_exactly_an_apply_without_it(self, scene):
        bindings = two(scene)
        assert torch.equal(sampled(scene, bindings), separated(scene, bindings, 0.0))

    def test_nobody_looks_on(self, scene, monkeypatch):
        watches = []
        added_to = pack.module("nodes.bridge.families.unet_site_call").SiteCall.added_to
        monkeypatch.setattr(
            pack.module("nodes.bridge.families.unet_site_call").SiteCall,
            "added_to",
            lambda self, *args: watches.append(self.watch.wants_maps) or added_to(self, *args),
        )
        separated(scene, two(scene), 0.0)
        assert len(watches) >= len(scene.sites) * scene.steps
        assert set(watches) == {False}
        watches.clear()
        separated(scene, two(scene), 0.1)
        assert set(watches) == {True}


def _steps(scene, **settings):
    """Every step's prediction without and with separation."""
    steps = {}
    for separation in (0.0, 1.0):
        seen = steps[separation] = []
        model, clip = scene.apply(*two(scene, **settings), separation=separation)
        model.set_model_sampler_post_cfg_function(
            lambda each, seen=seen: seen.append(each["denoised"].clone()) or each["denoised"]
        )
        scene.sample(model, scene.encode(clip, PROMPT), scene.encode(clip, "bad"))
    return list(zip(*steps.values(), strict=True))


def test_the_first_step_is_without_and_the_second_is_not(scene):
    first, *others = _steps(scene)
    assert torch.equal(*first)
    for without, apart in others:
        assert scenes.relative_difference(apart, without) > VISIBLE


def test_where_all_are_painted_the_first_step_is_with_it(scene):
    everywhere = torch.full((1, 8, 8), 0.5)
    for without, apart in _steps(scene, mask=everywhere):
        assert scenes.relative_difference(apart, without) > VISIBLE


@pytest.mark.parametrize("masked", ["anna", "both", "overlapping"])
def test_of_the_owners_that_masks_name_it_equals_the_value_table(scene, masked):
    left = torch.zeros(1, scene.height * 8, scene.width * 8)
    left[..., : scene.width * 4] = 1.0
    others = {"anna": None, "both": 1.0 - left, "overlapping": torch.ones_like(left)}
    anna, rex = scene.subject(0), scene.subject(1, references=2)
    bindings = (
        scene.bind(anna, "<anna>", "woman", mask=left),
        scene.bind(rex, "<rex>", "dog", mask=others[masked]),
    )
    found = separated(scene, bindings)
    expected = _of_the_value_table(scene, anna, rex, left, others[masked])
    assert scenes.relative_difference(found, expected) < composition.TOLERANCE
    unmasked = _of_the_value_table(scene, anna, rex, None, None)
    assert scenes.relative_difference(unmasked, expected) > VISIBLE


def test_of_a_subject_that_comes_later_it_equals_the_value_table(sd15):
    """It competes from its second step on, with one of whom more is known."""
    start = sd15.model.get_model_object("model_sampling").percent_to_sigma(0.3)
    anna, rex = sd15.subject(0), sd15.subject(1, references=2)
    later = sd15.bind(anna, "<anna>", "woman", start_percent=0.3)
    found = separated(sd15, (later, sd15.bind(rex, "<rex>", "dog")), steps=6)
    expected, at_once = (
        _of_the_value_table(sd15, anna, rex, window=window, steps=6)
        for window in ((start, 0.0), (float("inf"), 0.0))
    )
    assert scenes.relative_difference(found, expected) < composition.TOLERANCE
    assert scenes.relative_difference(at_once, expected) > VISIBLE


def _of_the_value_table(
    scene, anna, rex, mask=None, mask_of_rex=None, window=(float("inf"), 0.0), **options
):
    naive = {
        "<anna>": scene.naive(anna, mask=mask, window=window),
        "<rex>": scene.naive(rex, mask=mask_of_rex),
    }
    slots = {
        place: naive[who] for who, places in composition.APART.places.items() for place in places
    }
    conditionings = [scene.encode(scene.clip, text) for text in (PLAIN, "bad")]
    rows, tables = reference.positive_only(slots), composition.APART.naive_tables
    return scene.sample_naively(rows, *conditionings, make_tables=tables, **options)


class TestRowsDoNotInfluenceEachOther:
    """Law 4: what one row has shown never moves another."""

    def test_batch_size(self, scene):
        alone = separated(scene, two(scene))
        first = separated(scene, two(scene), batch=3)[:1]
        assert scenes.relative_difference(first, alone) < ROUNDING

    def test_the_pictures_of_a_batch_have_owners_of_their_own(self, sd15, monkeypatch):
        """Each as if it were sampled alone from its own noise."""
        noise = torch.randn(3, 4, 16, 12, generator=torch.Generator().manual_seed(11))
        together = separated(sd15, two(sd15), batch=3)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: noise[2:])
        alone = separated(sd15, two(sd15))
        assert scenes.relative_difference(together[2:], alone) < ROUNDING

    def test_the_negative_prompt(self, scene):
        model, clip = scene.apply(*two(scene), separation=1.0)
        model, positive = positive_alone(model), scene.encode(clip, PROMPT)
        expected, *others = (
            scene.sample(model, positive, scene.encode(clip, negative))
            for negative in ("", "blurry " * 90, "<anna> and <rex>", PROMPT, "no <rex>")
        )
        for found in others:
            assert scenes.relative_difference(found, expected) < ROUNDING
        without = separated(scene, two(scene), 0.0)
        assert scenes.relative_difference(without, expected) > VISIBLE

    @pytest.mark.parametrize("masked", [False, True])
    def test_other_conditionings_beside_it(self, scene, masked):
        """Two areas that do not touch: the left one's pixels are its own prompt's alone."""
        scene.width = 16
        mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(4))
        bindings = two(scene, **({"mask": mask} if masked else {}))
        model, clip = scene.apply(*bindings, separation=1.0)

        def of_two_areas(right, first="left"):
            parts = {
                side: pack.run_host(
                    "ConditioningSetArea",
                    conditioning=scene.encode(clip, text),
                    width=64,
                    height=128,
                    x=x,
                    y=0,
                    strength=1.0,
                )
                for side, text, x in (("left", PROMPT, 0), ("right", right, 64))
            }
            order = ["left", "right"] if first == "left" else ["right", "left"]
            combined = pack.run_host(
                "ConditioningCombine",
                conditioning_1=parts[order[0]],
                conditioning_2=parts[order[1]],
            )
            return scene.sample(positive_alone(model), combined, scene.encode(clip, "bad"))

        expected = of_two_areas("a house")
        for found in (
            of_two_areas("<rex> <anna>"),
            of_two_areas(PROMPT),
            of_two_areas("<anna> and <rex>", first="right"),
        ):
            assert scenes.relative_difference(found[..., :8], expected[..., :8]) < ROUNDING
        assert scenes.relative_difference(found[..., 8:], expected[..., 8:]) > VISIBLE

    def test_a_subject_for_each_picture(self, scene):
        first, second = scene.subject(0), scene.subject(2)
        (each,) = SubjectPerPicture.execute(
            subjects={"subject_0": first, "subject_1": second}
        ).result
        together = separated(scene, two(scene, each), batch=2)
        alone = separated(scene, two(scene, first))
        assert scenes.relative_difference(together[:1], alone) < ROUNDING


def test_apply_twice_keeps_the_greater_separation(scene):
    anna, rex = two(scene)
    expected = separated(scene, (anna, rex), 0.7)
    for first, second in ((0.7, 0.1), (0.2, 0.7), (0.7, None)):
        model, clip = scene.apply(anna, separation=first)
        inputs = {} if second is None else {"separation": second}
        model, clip = scene.apply(rex, model=model, clip=clip, **inputs)
        conditionings = [scene.encode(clip, text) for text in (PROMPT, "bad")]
        assert torch.equal(scene.sample(model, *conditionings), expected)


def test_what_is_known_moves_slowly_and_for_its_own_row_alone():
    place = pack.module("nested_core.call.places").Place(1, 0, 0, 0, 4, 3, 4, 3)
    maps, device = evidence.SubjectMaps(), torch.device("cpu")
    first, second = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    for shown in (first, second):
        maps._learn((place, 7), shown)
    known = maps.evidence(place, [7], device)
    torch.testing.assert_close(known, (0.9 * first + 0.1 * second)[:, None])
    assert maps.evidence(place, [7, 8], device) is None
    for other in (
        {"picture": 0},
        {"conditioning": 1},
        {"height": 5},
        {"top": 1},
        {"first_frame": 2},
    ):
        assert maps.evidence(place._replace(**other), [7], device) is None


class TestNothingIsLeft:
    def test_queueing_again_gives_the_same_picture(self, scene):
        model, clip = scene.apply(*two(scene), separation=1.0)
        conditionings = [scene.encode(clip, text) for text in (PROMPT, "bad")]
        expected = scene.sample(model, *conditionings)
        for nth in range(4):
            separated(scene, two(scene), 0.5, prompt="<anna>, <rex>", batch=1 + nth % 2, steps=2)
            assert torch.equal(scene.sample(model, *conditionings), expected)

    def test_what_a_sampling_has_seen_ends_with_it(self, sd15, monkeypatch):
        alive = []
        for kind in (sampling.Sampling, evidence.SubjectMaps, sampling.CallWatch):
            monkeypatch.setattr(kind, "__init__", _noting(alive, kind.__init__))
        model, clip = sd15.apply(*two(sd15), separation=1.0)
        conditionings = [sd15.encode(clip, text) for text in (PROMPT, "bad")]
        sd15.sample(model, *conditionings)
        gc.collect()
        assert len(alive) == 2 + sd15.steps
        assert [each() for each in alive] == [None] * len(alive)
        assert sampling.SAMPLING_KEY not in model.model_options["transformer_options"]

    def test_a_sampling_that_fails_leaves_nothing_either(self, sd15):
        model, clip = sd15.apply(*two(sd15), separation=1.0)
        failing = model.clone()
        failing.set_model_sampler_post_cfg_function(lambda _: 1 / 0)
        conditionings = [sd15.encode(clip, text) for text in (PROMPT, "bad")]
        with pytest.raises(ZeroDivisionError):
            sd15.sample(failing, *conditionings)
        assert sampling.SAMPLING_KEY not in failing.model_options["transformer_options"]
        expected = separated(sd15, two(sd15))
        assert torch.equal(sd15.sample(model, *conditionings), expected)


def _noting(alive, initialise):
    def noting(self, *args, **kwargs):
        alive.append(weakref.ref(self))
        initialise(self, *args, **kwargs)

    return noting


OTHER = composition.Cast("<anna>, <rex>", {"<anna>": (1,), "<rex>": (3,)}, separation=1.0)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde"])
def test_everything_together_equals_the_value_table(sd15, sampler):
    """A batch, a LoRA, a ControlNet, and two prompts about the subjects, one of them in an area."""
    lora = model_files.write_lora("apart", sd15.model, sd15.clip)
    control = tiny.control_net("sd15")
    picture = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(8))

    def with_lora(model, clip):
        strengths = {"strength_model": 0.8, "strength_clip": 0.6}
        return pack.run_host("LoraLoader", model=model, clip=clip, lora_name=lora, **strengths)

    def sampled_from(model, clip, *texts):
        in_area, everywhere = (sd15.encode(clip, text) for text in texts)
        in_area = pack.run_host(
            "ConditioningSetArea",
            conditioning=in_area,
            width=64,
            height=64,
            x=32,
            y=64,
            strength=1.0,
        )
        positive, negative = pack.run_host(
            "ControlNetApplyAdvanced",
            positive=pack.run_host(
                "ConditioningCombine", conditioning_1=in_area, conditioning_2=everywhere
            ),
            negative=sd15.encode(clip, composition.NEGATIVE),
            control_net=control,
            image=picture,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        return sd15.sample(model, positive, negative, batch=2, sampler=sampler)

    anna, casts = sd15.subject(), (composition.APART, OTHER)
    bound = sd15.apply(*composition.bindings(sd15, anna, composition.APART), separation=1.0)
    found = sampled_from(*with_lora(*bound), *(cast.prompt for cast in casts))

    model, clip = with_lora(sd15.model, sd15.clip)
    rows = reference.rows_reading(
        [
            (sd15.encode(clip, cast.plain)[0][0], composition.naive_slots(sd15, anna, cast))
            for cast in casts
        ]
    )
    expected, mixed = (
        sampled_from(
            reference.with_naive_subjects(model, sd15.sites, rows, cast.naive_tables),
            clip,
            *(each.plain for each in casts),
        )
        for cast in (composition.APART, composition.MIXED)
    )
    composition.assert_apart(found, expected, mixed)
