"""ComfyUI's conditioning nodes between text encoder and sampler, against the naive reference."""

from __future__ import annotations

import comfy.patcher_extension
import pytest
import scenes
import torch
from torch.nn import functional
from two_subjects import (
    LONG,
    LONGER,
    Pair,
    assert_equals_the_value_table,
    assert_is_exactly_the_host,
    combine,
    make_two,
    through,
)


class TestCombine:
    def test_each_prompt_keeps_its_own_subjects(self, two):
        anna, rex = two.encode("a <anna> here"), two.encode("in a park, <rex> and <anna>")
        known = [
            (anna.context, two.slots({2: "<anna>"})),
            (rex.context, two.slots({5: "<rex>", 7: "<anna>"})),
        ]
        assert_equals_the_value_table(two, combine(anna, rex), two.encode("bad"), known, batch=2)

    def test_bound_and_unbound_prompts_on_both_sides(self, two):
        anna, rex, plain = (two.encode(text) for text in ("<anna>", "bad <rex>", "a park"))
        known = [
            (anna.context, two.slots({1: "<anna>"})),
            (rex.context, two.slots({2: "<rex>"})),
        ]
        assert_equals_the_value_table(two, combine(plain, anna), combine(rex, plain), known)

    def test_prompts_of_different_length(self, two):
        anna, rex = two.encode(LONG + "<anna>"), two.encode("<rex>")
        known = [
            (anna.context, two.slots({77 + 6: "<anna>"})),
            (rex.context, two.slots({1: "<rex>"})),
        ]
        assert_equals_the_value_table(two, combine(anna, rex), two.encode("bad"), known)


@pytest.mark.parametrize(
    ("positive", "negative", "positions"),
    [
        # texts, and where the noun stands; contexts of 77, 154, 231 and 385 rows
        ("<anna>", LONG, {1: "<anna>"}),
        (LONG + "<anna>", "bad", {77 + 6: "<anna>"}),
        ("<anna> " + LONG + "<rex>", "bad", {1: "<anna>", 77 + 7: "<rex>"}),
        ("<anna>", LONGER, {1: "<anna>"}),
        (LONGER + "<anna>", "bad", {154 + 11: "<anna>"}),
        (LONGER + "<anna>", LONG, {154 + 11: "<anna>"}),
        (LONG + "<anna>", LONGER, {77 + 6: "<anna>"}),
        ("<anna>", "very " * 310, {1: "<anna>"}),  # too different: ComfyUI runs them apart
    ],
)
def test_prompts_of_different_length_in_one_batch(two, positive, negative, positions):
    positive, negative = two.encode(positive), two.encode(negative)
    known = [(positive.context, two.slots(positions))]
    assert_equals_the_value_table(two, positive, negative, known)


def test_bound_and_unbound_prompts_share_one_call_of_the_unet(two):
    rows = []

    def count(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)

    model = two.model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, count)
    positive = combine(two.encode("<anna>"), two.encode("a park"))
    two.scene.sample(model, positive.bound, two.encode(LONG + "<rex>").bound, batch=2)
    assert rows == [3 * 2] * two.scene.steps


def test_a_bound_negative_prompt_of_another_length(two):
    positive, negative = two.encode("<anna> in a park"), two.encode(LONG + "<rex>")
    known = [
        (positive.context, two.slots({1: "<anna>"})),
        (negative.context, two.slots({77 + 6: "<rex>"})),
    ]
    assert_equals_the_value_table(two, positive, negative, known)


# Latents of 16 x 12; the last entry is (height, width, top, left) in them.
AREAS = [
    ("ConditioningSetArea", {"width": 64, "height": 64, "x": 32, "y": 48}, (8, 8, 6, 4)),
    ("ConditioningSetArea", {"width": 64, "height": 72, "x": 8, "y": 0}, (9, 8, 0, 1)),
    ("ConditioningSetArea", {"width": 512, "height": 512, "x": 32, "y": 48}, (10, 8, 6, 4)),
    (
        "ConditioningSetAreaPercentage",
        {"width": 0.5, "height": 0.4, "x": 0.25, "y": 0.3},
        (6, 6, 5, 3),
    ),
]


@pytest.mark.parametrize(("node", "inputs"), [area[:2] for area in AREAS])
class TestArea:
    def test_a_subject_in_an_area(self, two, node, inputs):
        base, part = two.encode("a <rex> park"), two.encode("a <anna> here")
        positive = combine(base, through(node, part, strength=1.3, **inputs))
        known = [
            (base.context, two.slots({2: "<rex>"})),
            (part.context, two.slots({2: "<anna>"})),
        ]
        assert_equals_the_value_table(two, positive, two.encode("bad"), known)

    def test_the_opposite_side_of_an_area_keeps_its_own_subjects(self, two, node, inputs):
        part, negative = two.encode("a <anna> here"), two.encode("no <rex>, no")
        positive = through(node, part, strength=1.0, **inputs)
        known = [
            (part.context, two.slots({2: "<anna>"})),
            (negative.context, two.slots({2: "<rex>"})),
        ]
        assert_equals_the_value_table(two, positive, negative, known)


@pytest.mark.parametrize(
    ("area", "size"),
    [
        (0, (128, 96)),
        (1, (128, 96)),
        (2, (64, 36)),
        (3, (16, 12)),
        (0, (37, 91)),
        (3, (37, 91)),
        (1, (5, 3)),
    ],
)
def test_a_bindings_mask_is_cropped_to_an_area(area, size):
    node, inputs, place = AREAS[area]
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(3))
    two = make_two("sdxl", mask=masks, token_weight=2.0)
    base, part = two.encode("a <rex> park"), two.encode("a <anna> here")
    positive = combine(base, through(node, part, strength=1.3, **inputs))
    cropped = _cropped(masks, place, (16, 12))
    known = [
        (base.context, two.slots({2: "<rex>"}, mask=masks, token_weight=2.0)),
        (part.context, two.slots({2: "<anna>"}, mask=cropped, token_weight=2.0)),
    ]
    assert_equals_the_value_table(two, positive, two.encode("bad"), known, batch=2)


def _cropped(masks: torch.Tensor, area: tuple[int, ...], latent: tuple[int, int]) -> torch.Tensor:
    """At the mask's own resolution where latents are whole numbers of its pixels, else at theirs."""
    if masks.shape[1] % latent[0] or masks.shape[2] % latent[1]:
        masks = functional.interpolate(masks[None], size=latent, mode="area")[0]
    down, across = masks.shape[1] // latent[0], masks.shape[2] // latent[1]
    height, width, top, left = area
    return masks[:, top * down : (top + height) * down, left * across : (left + width) * across]


def test_masks_in_areas_of_one_size_at_different_places():
    masks = torch.rand(1, 128, 96, generator=torch.Generator().manual_seed(3))
    two = make_two("sdxl", mask=masks)
    left, right = two.encode("a <anna> here"), two.encode("a <rex> there")
    size = {"width": 64, "height": 64, "strength": 1.0}
    positive = combine(
        through("ConditioningSetArea", left, x=0, y=8, **size),
        through("ConditioningSetArea", right, x=32, y=40, **size),
    )
    known = [
        (left.context, two.slots({2: "<anna>"}, mask=_cropped(masks, (8, 8, 1, 0), (16, 12)))),
        (right.context, two.slots({2: "<rex>"}, mask=_cropped(masks, (8, 8, 5, 4), (16, 12)))),
    ]
    assert_equals_the_value_table(two, positive, two.encode("bad"), known)


@pytest.mark.parametrize("set_cond_area", ["default", "mask bounds"])
def test_set_mask_beside_a_bindings_own_mask(set_cond_area):
    own = torch.rand(1, 128, 96, generator=torch.Generator().manual_seed(3))
    two = make_two("sdxl", mask=own)
    mask = torch.zeros(1, 16, 12)
    mask[:, 3:13, 2:11] = 0.7
    base, part = two.encode("a <rex> park"), two.encode("a <anna> here")
    inputs = {"mask": mask, "set_cond_area": set_cond_area, "strength": 1.2}
    positive = combine(base, through("ConditioningSetMask", part, **inputs))
    crop = own if set_cond_area == "default" else _cropped(own, (10, 9, 3, 2), (16, 12))
    known = [
        (base.context, two.slots({2: "<rex>"}, mask=own)),
        (part.context, two.slots({2: "<anna>"}, mask=crop)),
    ]
    assert_equals_the_value_table(two, positive, two.encode("bad"), known)


def test_prompts_of_different_parts_of_the_schedule(two):
    early, late = two.encode("<anna> first"), two.encode("a <rex> then")
    positive = combine(
        through("ConditioningSetTimestepRange", early, start=0.0, end=0.6),
        through("ConditioningSetTimestepRange", late, start=0.4, end=1.0),
    )
    known = [
        (early.context, two.slots({1: "<anna>"})),
        (late.context, two.slots({2: "<rex>"})),
    ]
    assert_equals_the_value_table(two, positive, two.encode("bad"), known, steps=5)


class TestZeroOut:
    @pytest.mark.parametrize("mode", ["per_head", "none"])
    def test_an_emptied_prompt_has_no_subjects(self, family, mode):
        scene = scenes.make_scene(family, value_norm=scenes.value_norm(mode))
        two = make_two(family, scene=scene, token_weight=2.0)
        negative = through("ConditioningZeroOut", two.encode("a <anna> here"))
        assert_is_exactly_the_host(two, two.encode("a park"), negative)

    def test_the_prompt_it_was_made_of_keeps_them(self, two):
        positive = two.encode("a <anna> here")
        negative = through("ConditioningZeroOut", positive)
        known = [(positive.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, positive, negative, known)


def test_a_context_repeated_for_each_picture_of_a_batch(two):
    positive = two.encode("a <anna> here")
    known = [(positive.context, two.slots({2: "<anna>"}))]
    repeated = Pair(*([[side[0][0].repeat(3, 1, 1), side[0][1]]] for side in positive))
    assert_equals_the_value_table(two, repeated, two.encode("bad"), known, batch=3)


@pytest.mark.parametrize(("num_tokens", "positions"), [(77, {1: "<anna>"}), (40, {1: "<anna>"})])
def test_a_context_that_a_node_cut_short(two, num_tokens, positions):
    positive = two.encode("<anna> " + LONG + "<rex>")
    cut = Pair(*([[side[0][0][:, :num_tokens], side[0][1]]] for side in positive))
    known = [(cut.context, two.slots(positions))]
    assert_equals_the_value_table(two, cut, two.encode("bad"), known)
