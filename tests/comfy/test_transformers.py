"""Nested attention in diffusion transformers equals the value table, in every family."""

from __future__ import annotations

import pytest
import torch
from bound_transformers import (
    PLAIN,
    PLAIN_TWO,
    TWO,
    assert_equal,
    bind,
    expected,
    make_encoder,
    make_subject,
    naive,
    plain_of,
    rows_of,
    sampled,
)
from dit_scene import shared_scene
from each_family import EACH


@pytest.mark.smoke
@EACH
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_subject_equals_the_value_table(family, cfg):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    slots = dict.fromkeys(rows_of(scene), naive(subject))
    found = sampled(scene, [bind(subject)], cfg=cfg)
    assert_equal(found, expected(scene, slots, cfg=cfg), plain_of(scene, cfg=cfg))


@EACH
def test_a_subject_of_no_strength_is_the_host_bit_for_bit(family):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    plain = plain_of(scene)
    assert torch.equal(sampled(scene, [bind(subject, strength=0.0)]), plain)
    assert torch.equal(sampled(scene, [bind(subject)], text=PLAIN), plain)
    between_steps = bind(subject, start_percent=0.001, end_percent=0.002)
    assert torch.equal(sampled(scene, [between_steps]), plain)
    mask = torch.zeros(1, 40, 40)
    assert torch.equal(sampled(scene, [bind(subject, mask=mask)]), plain)


@EACH
def test_two_subjects_with_everything_equal_the_value_table(family):
    scene = shared_scene(family)
    anna = make_subject(make_encoder(scene, "all_heads", 1.3))
    rex = make_subject(make_encoder(scene, "none", 1.0, seed=8), seed=3)
    mask = torch.rand(1, 33, 21, generator=torch.Generator().manual_seed(4))
    first, last = (rows_of(scene, PLAIN_TWO, noun) for noun in ("woman", "dog"))
    slots = dict.fromkeys(first, naive(anna, token_weight=3.0, strength=0.7))
    slots |= dict.fromkeys(last, naive(rex, mask=mask, token_weight=0.5))
    bindings = [
        bind(anna, token_weight=3.0, strength=0.7),
        bind(rex, "<rex>", "dog", mask=mask, token_weight=0.5),
    ]
    found = sampled(scene, bindings, text=TWO, batch=2)
    assert_equal(found, expected(scene, slots, PLAIN_TWO, batch=2))


@EACH
def test_nested_keys_may_pass_the_models_own_norm(family):
    scene = shared_scene(family)
    plain_key = make_subject(make_encoder(scene))
    normed = make_subject(make_encoder(scene, nested_key="model_norm"))
    one, other = (sampled(scene, [bind(each)]) for each in (plain_key, normed))
    assert bool(one.isfinite().all() and other.isfinite().all())
    assert (one - other).norm() / one.norm() > 1e-4
