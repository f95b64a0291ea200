"""Keeping subjects apart: whose value each pixel is given, and what that must leave alone."""

from __future__ import annotations

import gc
import weakref

import beside
import model_files
import naive_owners
import pack
import pytest
import reference
import scenes
import tiny
import torch

sampling = pack.module("nodes.bridge.sampling")
SubjectPerPicture = pack.module("nodes.subject").SubjectPerPicture

PROMPT, PLAIN = "<rex> and <anna>, <rex> again", "dog and woman, dog again"
REX, ANNA = [1, 5], [3]  # positions: start token, dog, and, woman, ",", dog
TOLERANCE = 1e-4  # float32 against float64, the maps' rounding amplified by the sharp competition
ROUNDING = 1e-4
VISIBLE = 1e-3


def applied(scene, *bindings, **inputs):
    """MODEL and CLIP; `separation` is left away unless given."""
    return scene.apply(*bindings, **inputs)


def two(scene, anna=None, rex=None, **settings):
    """Bindings of two subjects."""
    return (
        scene.bind(anna or scene.subject(0), "<anna>", "woman", **settings),
        scene.bind(rex or scene.subject(1, references=2), "<rex>", "dog", **settings),
    )


def sampled(scene, bindings, prompt=PROMPT, negative="bad", inputs=None, **options):
    model, clip = applied(scene, *bindings, **(inputs or {}))
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
        attend = pack.module("nodes.bridge.site_call").SiteCall.attend
        monkeypatch.setattr(
            pack.module("nodes.bridge.site_call").SiteCall,
            "attend",
            lambda self, *args: watches.append(self.watch) or attend(self, *args),
        )
        separated(scene, two(scene), 0.0)
        assert len(watches) >= len(scene.sites) * scene.steps
        assert set(watches) == {None}
        watches.clear()
        separated(scene, two(scene), 0.1)
        assert None not in watches

    def test_one_subject_alone_is_exactly_as_without(self, scene):
        alone = [scene.bind()]
        found = separated(scene, alone, prompt="<anna> and <anna>")
        assert torch.equal(found, sampled(scene, alone, prompt="<anna> and <anna>"))

    @pytest.mark.smoke
    def test_subjects_without_effect_are_exactly_the_host(self, scene):
        conditionings = [scene.encode(scene.clip, text) for text in (PLAIN, "bad")]
        host = scene.sample(scene.model, *conditionings)
        assert torch.equal(separated(scene, two(scene, strength=0.0)), host)
        assert torch.equal(separated(scene, two(scene), prompt=PLAIN), host)


def _steps(scene, **settings):
    """Every step's prediction without and with separation."""
    steps = {}
    for separation in (0.0, 1.0):
        seen = steps[separation] = []
        model, clip = applied(scene, *two(scene, **settings), separation=separation)
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


def _of_the_value_table(scene, anna, rex, separation, masks=(None, None)):
    owners = naive_owners.NaiveOwners(separation, (scene.height, scene.width))
    naive_anna, naive_rex = (
        scene.naive(each, mask=mask) for each, mask in zip((anna, rex), masks, strict=True)
    )
    slots = dict.fromkeys(ANNA, naive_anna) | dict.fromkeys(REX, naive_rex)
    conditionings = [scene.encode(scene.clip, text) for text in (PLAIN, "bad")]
    rows = reference.positive_only(slots)
    return scene.sample_naively(rows, *conditionings, make_tables=owners)


class TestEqualsTheValueTable:
    @pytest.mark.smoke
    @pytest.mark.parametrize("separation", [0.7, 1.0])
    def test_of_the_owners_that_the_maps_show(self, scene, separation):
        anna, rex = scene.subject(0), scene.subject(1, references=2)
        found = separated(scene, two(scene, anna, rex), separation)
        expected = _of_the_value_table(scene, anna, rex, separation)
        assert scenes.relative_difference(found, expected) < TOLERANCE
        without = _of_the_value_table(scene, anna, rex, 0.0)
        assert scenes.relative_difference(without, expected) > VISIBLE

    @pytest.mark.parametrize("masked", ["anna", "both", "overlapping"])
    def test_of_the_owners_that_the_masks_say(self, scene, masked):
        left = torch.zeros(1, scene.height * 8, scene.width * 8)
        left[..., : scene.width * 4] = 1.0
        others = {"anna": None, "both": 1.0 - left, "overlapping": torch.ones_like(left)}
        masks = [left, others[masked]]
        anna, rex = scene.subject(0), scene.subject(1, references=2)
        bindings = (
            scene.bind(anna, "<anna>", "woman", mask=masks[0]),
            scene.bind(rex, "<rex>", "dog", mask=masks[1]),
        )
        found = separated(scene, bindings)
        expected = _of_the_value_table(scene, anna, rex, 1.0, masks)
        assert scenes.relative_difference(found, expected) < TOLERANCE
        unmasked = _of_the_value_table(scene, anna, rex, 1.0)
        assert scenes.relative_difference(unmasked, expected) > VISIBLE


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
        model, clip = applied(scene, *two(scene), separation=1.0)
        model, positive = positive_alone(model), scene.encode(clip, PROMPT)
        expected, *others = (
            scene.sample(model, positive, scene.encode(clip, negative))
            for negative in ("", "blurry " * 90, "<anna> and <rex>", PROMPT, "no <rex>")
        )
        for found in others:
            assert scenes.relative_difference(found, expected) < ROUNDING
        without = separated(scene, two(scene), 0.0)
        assert scenes.relative_difference(without, expected) > VISIBLE

    def test_cfg_one_runs_the_positive_prompt_alone(self, scene):
        model, clip = applied(scene, *two(scene), separation=1.0)
        conditionings = [scene.encode(clip, text) for text in (PROMPT, "<anna> and <rex>")]
        beside_it = scene.sample(positive_alone(model), *conditionings)
        alone = scene.sample(model, *conditionings, cfg=1.0)
        assert scenes.relative_difference(alone, beside_it) < ROUNDING

    def test_other_conditionings_beside_it(self, scene):
        """Two areas that do not touch: the left one's pixels are its own prompt's alone."""
        scene.width = 16
        model, clip = applied(scene, *two(scene), separation=1.0)

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
        model, clip = applied(scene, anna, separation=first)
        inputs = {} if second is None else {"separation": second}
        model, clip = applied(scene, rex, model=model, clip=clip, **inputs)
        conditionings = [scene.encode(clip, text) for text in (PROMPT, "bad")]
        assert torch.equal(scene.sample(model, *conditionings), expected)


def test_what_is_known_moves_slowly_and_for_its_own_row_alone():
    place = pack.module("nodes.bridge.conditioning").Place(1, 0, 0, 0, 4, 3, 4, 3)
    maps, device = sampling.SubjectMaps(), torch.device("cpu")
    first, second = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for shown in (first, second):
        maps._learn(sampling._key(place, 7), shown)
    found = maps.evidence(place, [7], device)
    torch.testing.assert_close(found, (0.9 * first + 0.1 * second)[None])
    assert maps.evidence(place, [7, 8], device) is None
    for other in ({"picture": 0}, {"conditioning": 1}, {"height": 5}):
        assert maps.evidence(place._replace(**other), [7], device) is None


class TestNothingIsLeft:
    def test_queueing_again_gives_the_same_picture(self, scene):
        model, clip = applied(scene, *two(scene), separation=1.0)
        conditionings = [scene.encode(clip, text) for text in (PROMPT, "bad")]
        expected = scene.sample(model, *conditionings)
        for nth in range(4):
            separated(scene, two(scene), 0.5, prompt="<anna>, <rex>", batch=1 + nth % 2, steps=2)
            assert torch.equal(scene.sample(model, *conditionings), expected)

    def test_what_a_sampling_has_seen_ends_with_it(self, sd15, monkeypatch):
        alive = []
        for kind in (sampling.Sampling, sampling.SubjectMaps, sampling.CallWatch):
            monkeypatch.setattr(kind, "__init__", _noting(alive, kind.__init__))
        model, clip = applied(sd15, *two(sd15), separation=1.0)
        conditionings = [sd15.encode(clip, text) for text in (PROMPT, "bad")]
        sd15.sample(model, *conditionings)
        gc.collect()
        assert len(alive) == 2 + sd15.steps
        assert [each() for each in alive] == [None] * len(alive)
        assert sampling.SAMPLING_KEY not in model.model_options["transformer_options"]

    def test_a_sampling_that_fails_leaves_nothing_either(self, sd15):
        model, clip = applied(sd15, *two(sd15), separation=1.0)
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


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde"])
def test_beside_a_lora_a_controlnet_and_an_area(scene, sampler):
    lora = model_files.write_lora(f"apart_{scene.family}", scene.model, scene.clip)
    control = tiny.control_net(scene.family)
    picture = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(8))

    def run(separation):
        model, clip = applied(scene, *two(scene), separation=separation)
        model, clip = pack.run_host(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=lora,
            strength_model=0.8,
            strength_clip=0.6,
        )
        area = pack.run_host(
            "ConditioningSetArea",
            conditioning=scene.encode(clip, PROMPT),
            width=64,
            height=64,
            x=32,
            y=64,
            strength=1.0,
        )
        positive = pack.run_host(
            "ConditioningCombine",
            conditioning_1=area,
            conditioning_2=scene.encode(clip, "<anna>, <rex>"),
        )
        positive, negative = pack.run_host(
            "ControlNetApplyAdvanced",
            positive=positive,
            negative=scene.encode(clip, beside.NEGATIVE),
            control_net=control,
            image=picture,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        return scene.sample(model, positive, negative, batch=2, sampler=sampler)

    found = run(1.0)
    assert bool(found.isfinite().all())
    assert scenes.relative_difference(found, run(0.0)) > VISIBLE
