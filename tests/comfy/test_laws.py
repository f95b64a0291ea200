"""The laws of the method on the real host: equality with the naive reference, exactness where the
subject must not act, independence of everything beside a row."""

from __future__ import annotations

import math
from dataclasses import replace

import composition
import pytest
import reference
import scenes
import torch
from composition import NEGATIVE, PLAIN, POSITION, PROMPT, TOLERANCE, sample_bound, sample_naive
from reference_separation import NaiveSeparation


def _sampled(scene, *bindings, prompt=PROMPT, negative=NEGATIVE, separation=0.0, **options):
    model, clip = scene.apply(*bindings, separation=separation)
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, negative), **options)


def _host(scene, cast=composition.ALONE):
    return sample_naive(scene, None, cast=cast)


@pytest.mark.smoke
def test_sampling_equals_the_value_table(scene):
    subject = scene.subject()
    found, expected = sample_bound(scene, subject), sample_naive(scene, subject)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    assert scenes.relative_difference(_host(scene), expected) > 0.01


@pytest.mark.smoke
@pytest.mark.parametrize("separation", [0.3, 1.0])
def test_every_separation_equals_the_value_table(scene, separation):
    subject, cast = scene.subject(), replace(composition.APART, separation=separation)
    found, expected, mixed = (
        sample_bound(scene, subject, cast=cast),
        sample_naive(scene, subject, cast=cast),
        sample_naive(scene, subject, cast=composition.MIXED),
    )
    composition.assert_apart(found, expected, mixed)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde"])
@composition.CASTS
def test_samplers_that_call_the_model_in_their_own_way_equal_the_value_table(sd15, sampler, cast):
    """`heun` calls it twice in most steps."""
    subject = sd15.subject()
    found = sample_bound(sd15, subject, cast=cast, sampler=sampler)
    expected = sample_naive(sd15, subject, cast=cast, sampler=sampler)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    euler = sample_naive(sd15, subject, cast=cast)
    assert scenes.relative_difference(euler, expected) > composition.VISIBLE


@composition.FAMILIES_AND_CASTS
@pytest.mark.parametrize(
    "inputs, settings",
    [
        ({"strength": 0.6}, {"strength": 0.6}),
        ({"strength": 1.7}, {"strength": 1.7}),
        ({"token_weight": 3.0}, {"token_weight": 3.0}),
        ({"token_weight": 0.2, "strength": 0.5}, {"token_weight": 0.2, "strength": 0.5}),
        ({"token_weight": 10.0, "strength": 0.0}, {"token_weight": 10.0, "strength": 0.0}),
        ({"sites": "u"}, {"sites": lambda site: site[0] == "output"}),
        (
            {"sites": "!m,!u0"},
            {"sites": lambda site: site[:2] not in (("middle", 0), ("output", 0))},
        ),
    ],
)
def test_every_knob_equals_the_value_table(scene, cast, inputs, settings):
    subject = scene.subject()
    found = sample_bound(scene, subject, binding=inputs, cast=cast)
    expected = sample_naive(scene, subject, settings=settings, cast=cast)
    assert scenes.relative_difference(found, expected) < TOLERANCE


@composition.FAMILIES_AND_CASTS
@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_every_value_norm_equals_the_value_table(family, cast, mode):
    scene = scenes.make_scene(family, value_norm=scenes.value_norm(mode, 1.5))
    subject = scene.subject()
    found = sample_bound(scene, subject, cast=cast)
    expected = sample_naive(scene, subject, cast=cast)
    assert scenes.relative_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("separation", [0.0, 1.0])
def test_two_subjects_of_a_batch_equal_the_value_table(scene, separation):
    anna, rex = scene.subject(0), scene.subject(1, references=3)
    found = _sampled(
        scene,
        scene.bind(anna, "<anna>", "woman", token_weight=1.5),
        scene.bind(rex, "<rex>", "dog", strength=0.7, token_weight=0.5),
        prompt=composition.APART.prompt,
        separation=separation,
        batch=3,
    )
    naive_rex = scene.naive(rex, strength=0.7, token_weight=0.5)
    slots = {1: naive_rex, 3: scene.naive(anna, token_weight=1.5), 5: naive_rex}
    expected = scene.sample_naively(
        reference.positive_only(slots, 3),
        scene.encode(scene.clip, composition.APART.plain),
        scene.encode(scene.clip, NEGATIVE),
        make_tables=NaiveSeparation(separation),
        batch=3,
    )
    assert scenes.relative_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("separation", [0.0, 1.0])
def test_a_bound_negative_prompt_equals_the_value_table(scene, separation):
    anna, rex = scene.subject(0), scene.subject(1)
    found = _sampled(
        scene,
        scene.bind(anna),
        scene.bind(rex, "<rex>", "dog"),
        negative="bad <rex>, no <anna>",
        separation=separation,
    )
    naive_anna, naive_rex = scene.naive(anna), scene.naive(rex)
    positive, negative = {POSITION: naive_anna}, {2: naive_rex, 5: naive_anna}

    def row_slots(options, _):
        return [positive if kind == 0 else negative for kind in options["cond_or_uncond"]]

    expected = scene.sample_naively(
        row_slots,
        scene.encode(scene.clip, PLAIN),
        scene.encode(scene.clip, "bad dog, no woman"),
        make_tables=NaiveSeparation(separation),
    )
    assert scenes.relative_difference(found, expected) < TOLERANCE


@composition.FAMILIES_AND_CASTS
@pytest.mark.parametrize("size", [(64, 48), (37, 91), (5, 3)])
def test_a_mask_equals_the_value_table_on_an_odd_latent(scene, cast, size):
    scene.height, scene.width = 14, 10
    subject = scene.subject()
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(3))
    settings = {"mask": masks, "token_weight": 2.0, "strength": 0.8}
    found = sample_bound(scene, subject, binding=settings, cast=cast, batch=2)
    expected = sample_naive(scene, subject, settings=settings, cast=cast, batch=2)
    assert scenes.relative_difference(found, expected) < TOLERANCE


@composition.FAMILIES_AND_CASTS
def test_a_schedule_equals_the_value_table(scene, cast):
    subject = scene.subject()
    sampling = scene.model.get_model_object("model_sampling")
    window = {"window": (sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.8))}
    part = {"start_percent": 0.3, "end_percent": 0.8}
    found = sample_bound(scene, subject, binding=part, cast=cast, steps=6)
    expected = sample_naive(scene, subject, settings=window, cast=cast, steps=6)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    always = sample_bound(scene, subject, cast=cast, steps=6)
    assert scenes.relative_difference(always, expected) > 1e-3


@pytest.mark.smoke
@pytest.mark.parametrize(
    "inputs",
    [
        {"strength": 0.0},
        {"start_percent": 1.0, "end_percent": 1.0},
        {"mask": torch.zeros(1, 8, 8)},
        {"mask": torch.zeros(1, 8, 8), "token_weight": 4.0},
    ],
)
@composition.FAMILIES_AND_CASTS
def test_a_subject_without_effect_is_exactly_the_host(scene, cast, inputs):
    found = sample_bound(scene, scene.subject(), binding=inputs, cast=cast)
    assert torch.equal(found, _host(scene, cast))


@pytest.mark.smoke
@composition.FAMILIES_AND_CASTS
def test_a_prompt_without_bound_tokens_is_exactly_the_host(scene, cast):
    bindings = composition.bindings(scene, scene.subject(), cast)
    found = _sampled(scene, *bindings, prompt=cast.plain, separation=cast.separation)
    assert torch.equal(found, _host(scene, cast))


@pytest.mark.smoke
def test_a_single_subject_is_exactly_as_without_separation(scene):
    bindings = composition.bindings(scene, scene.subject(), composition.APART)
    prompt = "<anna> and <anna>"
    found = _sampled(scene, *bindings, prompt=prompt, separation=1.0)
    assert torch.equal(found, _sampled(scene, *bindings, prompt=prompt))


def test_one_nested_token_without_norm_is_plain_value_replacement(scene):
    resampler = scene.encoder.config.resampler
    scene.encoder = scenes.make_encoder(
        scene.family,
        scene.model,
        resampler=type(resampler)(**{**vars(resampler), "num_queries": 1}),
        value_norm=scenes.value_norm("none"),
    )
    subject = scene.subject()
    found = _sampled(scene, scene.bind(subject))

    def replace_value(query, key, value, options):
        site = next(
            s for s in scene.sites if tuple(s) == (*options["block"], options["block_index"])
        )
        value = value.clone()
        row = options["cond_or_uncond"].index(0)
        value[row, POSITION] = subject.tokens @ subject.encoder.projections(site).to_v.weight.T
        q, k, v = (
            each.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2)
            for each in (query, key, value)
        )
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)

    model = scene.model.clone()
    for site in scene.sites:
        model.set_model_attn2_replace(replace_value, *site)
    positive, negative = (scene.encode(scene.clip, text) for text in (PLAIN, "blurry"))
    expected = scene.sample(model, positive, negative)
    assert scenes.relative_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_stays_near_the_value_table(family, dtype, tolerance):
    """Tolerances: the host's own rounding, 11 and 8 bits over three steps."""
    scene = scenes.make_scene(family, dtype)
    subject = scene.subject()
    found = sample_bound(scene, subject)
    expected = sample_naive(scene, subject)
    assert scenes.relative_difference(found, expected) < tolerance
    assert scenes.relative_difference(_host(scene), expected) > tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_keeps_subjects_apart_as_the_value_table_does(dtype, tolerance):
    """The sharp competition adds nothing to that rounding; more calls and attention to see it."""
    scene, cast = scenes.make_scene("sd15", dtype), composition.APART
    subject, louder, long = scene.subject(), {"token_weight": 8.0}, {"steps": 6, "sampler": "heun"}
    found = sample_bound(scene, subject, binding=louder, cast=cast, **long)
    expected, mixed = (
        sample_naive(scene, subject, settings=louder, cast=each, **long)
        for each in (cast, composition.MIXED)
    )
    assert scenes.relative_difference(found, expected) < tolerance
    assert scenes.relative_difference(mixed, expected) > tolerance


@composition.FAMILIES_AND_CASTS
def test_fp8_weights_equal_the_value_table(family, cast):
    scene = scenes.make_scene(family, torch.float8_e4m3fn)
    subject = scene.subject()
    found = sample_bound(scene, subject, cast=cast)
    expected = sample_naive(scene, subject, cast=cast)
    assert scenes.relative_difference(found, expected) < TOLERANCE


class TestRowsDoNotInfluenceEachOther:
    """Rounding alone may differ: batched matrix products sum in another order."""

    ROUNDING = 1e-5

    def test_batch_size(self, scene):
        alone = _sampled(scene, scene.bind(), batch=1)
        noise_of_first = _sampled(scene, scene.bind(), batch=1)
        assert torch.equal(alone, noise_of_first)
        model, clip = scene.apply(scene.bind())
        positive, negative = scene.encode(clip, PROMPT), scene.encode(clip, "blurry")
        rows = _rows_of_one_call(scene, model, positive, negative, batch=4)
        single = _rows_of_one_call(scene, model, positive, negative, batch=1)
        for row in rows:
            assert scenes.relative_difference(row, single[0]) < self.ROUNDING

    def test_negative_prompt(self, scene):
        model, clip = scene.apply(scene.bind())
        positive = scene.encode(clip, PROMPT)
        results = [
            _conditional_part(scene, model, positive, scene.encode(clip, negative))
            for negative in ("", "blurry " * 90, "no <anna>", PROMPT)
        ]
        for result in results[1:]:
            assert scenes.relative_difference(result, results[0]) < self.ROUNDING

    @composition.FAMILIES_AND_CASTS
    def test_cfg_one_runs_the_positive_prompt_alone(self, scene, cast):
        subject = scene.subject()
        found = sample_bound(scene, subject, cast=cast, cfg=1.0)
        expected = sample_naive(scene, subject, cast=cast, cfg=1.0)
        assert scenes.relative_difference(found, expected) < TOLERANCE


def _rows_of_one_call(scene, model, positive, negative, batch):
    """Denoised rows after one step from the same noise in every row."""
    import comfy.sample

    noise = torch.randn(1, 4, scene.height, scene.width, generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(
        model,
        noise.repeat(batch, 1, 1, 1),
        1,
        4.0,
        "euler",
        "normal",
        positive,
        negative,
        torch.zeros(batch, 4, scene.height, scene.width),
        disable_pbar=True,
        seed=1,
    )


def _conditional_part(scene, model, positive, negative):
    """The positive prompt's own prediction while a negative prompt runs beside it."""
    seen = []
    observed = model.clone()

    def keep(arguments):
        seen.append(arguments["cond_denoised"].clone())
        return arguments["denoised"]

    observed.set_model_sampler_post_cfg_function(keep)
    scene.sample(observed, positive, negative, steps=1)
    return seen[0]
