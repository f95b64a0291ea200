"""The laws of the method on the real host: equality with the naive reference, exactness where the
subject must not act, independence of everything beside a row."""

from __future__ import annotations

import math

import pytest
import reference
import scenes
import torch

PROMPT = "a pencil drawing of <anna> in a coffee shop"
PLAIN = PROMPT.replace("<anna>", "woman")
POSITION = 5  # of "woman": start token, a, pencil, drawing, of, woman
TOLERANCE = 1e-4  # float32 against float64 over three sampler steps; measured 1e-6


def _sampled(scene, *bindings, prompt=PROMPT, negative="blurry", **options):
    model, clip = scene.apply(*bindings)
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, negative), **options)


def _expected(scene, slots, prompt=PLAIN, negative="blurry", batch=1, **options):
    return scene.sample_naively(
        reference.positive_only(slots, batch),
        scene.encode(scene.clip, prompt),
        scene.encode(scene.clip, negative),
        batch=batch,
        **options,
    )


def _host(scene, prompt=PLAIN, negative="blurry", **options):
    positive, negative = (scene.encode(scene.clip, text) for text in (prompt, negative))
    return scene.sample(scene.model, positive, negative, **options)


@pytest.mark.smoke
def test_sampling_equals_the_value_table(scene):
    subject = scene.subject()
    found = _sampled(scene, scene.bind(subject))
    expected = _expected(scene, {POSITION: scene.naive(subject)})
    assert scenes.relative_difference(found, expected) < TOLERANCE
    assert scenes.relative_difference(_host(scene), expected) > 0.01


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
def test_every_knob_equals_the_value_table(scene, inputs, settings):
    subject = scene.subject()
    found = _sampled(scene, scene.bind(subject, **inputs))
    expected = _expected(scene, {POSITION: scene.naive(subject, **settings)})
    assert scenes.relative_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_every_value_norm_equals_the_value_table(family, mode):
    scene = scenes.make_scene(family, value_norm=scenes.value_norm(mode, 1.5))
    subject = scene.subject()
    found = _sampled(scene, scene.bind(subject))
    expected = _expected(scene, {POSITION: scene.naive(subject)})
    assert scenes.relative_difference(found, expected) < TOLERANCE


def test_two_subjects_of_a_batch_equal_the_value_table(scene):
    anna, rex = scene.subject(0), scene.subject(1, references=3)
    found = _sampled(
        scene,
        scene.bind(anna, "<anna>", "woman", token_weight=1.5),
        scene.bind(rex, "<rex>", "dog", strength=0.7, token_weight=0.5),
        prompt="<rex> and <anna>, <rex> again",
        batch=3,
    )
    naive_rex = scene.naive(rex, strength=0.7, token_weight=0.5)
    slots = {1: naive_rex, 3: scene.naive(anna, token_weight=1.5), 5: naive_rex}
    expected = _expected(scene, slots, prompt="dog and woman, dog again", batch=3)
    assert scenes.relative_difference(found, expected) < TOLERANCE


def test_a_bound_negative_prompt_equals_the_value_table(scene):
    anna, rex = scene.subject(0), scene.subject(1)
    found = _sampled(
        scene,
        scene.bind(anna),
        scene.bind(rex, "<rex>", "dog"),
        negative="bad <rex>, no <anna>",
    )
    positive = {POSITION: scene.naive(anna)}
    negative = {2: scene.naive(rex), 5: scene.naive(anna)}

    def row_slots(options, _):
        return [positive if kind == 0 else negative for kind in options["cond_or_uncond"]]

    expected = scene.sample_naively(
        row_slots, scene.encode(scene.clip, PLAIN), scene.encode(scene.clip, "bad dog, no woman")
    )
    assert scenes.relative_difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (5, 3)])
def test_a_mask_equals_the_value_table_on_an_odd_latent(scene, size):
    scene.height, scene.width = 14, 10
    subject = scene.subject()
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(3))
    binding = scene.bind(subject, mask=masks, token_weight=2.0, strength=0.8)
    found = _sampled(scene, binding, batch=2)
    naive = scene.naive(subject, mask=masks, token_weight=2.0, strength=0.8)
    expected = _expected(scene, {POSITION: naive}, batch=2)
    assert scenes.relative_difference(found, expected) < TOLERANCE


def test_a_schedule_equals_the_value_table(scene):
    subject = scene.subject()
    sampling = scene.model.get_model_object("model_sampling")
    window = (sampling.percent_to_sigma(0.3), sampling.percent_to_sigma(0.8))
    found = _sampled(scene, scene.bind(subject, start_percent=0.3, end_percent=0.8), steps=6)
    expected = _expected(scene, {POSITION: scene.naive(subject, window=window)}, steps=6)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    always = _sampled(scene, scene.bind(subject), steps=6)
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
def test_a_subject_without_effect_is_exactly_the_host(scene, inputs):
    assert torch.equal(_sampled(scene, scene.bind(**inputs)), _host(scene))


@pytest.mark.smoke
def test_a_prompt_without_bound_tokens_is_exactly_the_host(scene):
    assert torch.equal(_sampled(scene, scene.bind(), prompt=PLAIN), _host(scene))


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
    found = _sampled(scene, scene.bind(subject))
    expected = _expected(scene, {POSITION: scene.naive(subject)})
    assert scenes.relative_difference(found, expected) < tolerance
    assert scenes.relative_difference(_host(scene), expected) > tolerance


def test_fp8_weights_equal_the_value_table(family):
    scene = scenes.make_scene(family, torch.float8_e4m3fn)
    subject = scene.subject()
    found = _sampled(scene, scene.bind(subject))
    expected = _expected(scene, {POSITION: scene.naive(subject)})
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

    def test_cfg_one_runs_the_positive_prompt_alone(self, scene):
        found = _sampled(scene, scene.bind(), cfg=1.0)
        subject = scene.subject()
        expected = _expected(scene, {POSITION: scene.naive(subject)}, cfg=1.0)
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
