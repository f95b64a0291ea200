"""ComfyUI's conditioning nodes between text encoder and sampler, against the naive reference."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.patcher_extension
import pack
import pytest
import reference
import scenes
import torch
from torch.nn import functional

TOLERANCE = 1e-4  # float32 against float64 over two sampler steps; measured 1e-6
ROUNDING = 1e-5  # float32, other sizes of the same matrix products
VISIBLE = 1e-3  # what the subjects must change, so that a missing one is noticed
NOUNS = {"<anna>": "woman", "<rex>": "dog"}
LONG = "very " * 80
LONGER = "very " * 160


class Pair(NamedTuple):
    """One conditioning from the bound text encoder, and from the plain one for the noun prompt."""

    bound: Any
    plain: Any

    @property
    def context(self) -> torch.Tensor:
        return self.plain[0][0]


@dataclass(frozen=True)
class Two:
    """A checkpoint with two subjects bound to it."""

    scene: scenes.Scene
    anna: Any
    rex: Any
    model: Any
    clip: Any

    def encode(self, text: str) -> Pair:
        plain = text
        for token, noun in NOUNS.items():
            plain = plain.replace(token, noun)
        return Pair(self.scene.encode(self.clip, text), self.scene.encode(self.scene.clip, plain))

    def naive(self, token: str, **settings: Any) -> reference.NaiveSubject:
        return self.scene.naive({"<anna>": self.anna, "<rex>": self.rex}[token], **settings)

    def slots(self, rows: dict[int, str], **settings: Any) -> dict[int, reference.NaiveSubject]:
        return {row: self.naive(token, **settings) for row, token in rows.items()}


def make_two(family: str, seed: int = 0, scene: scenes.Scene | None = None, **binding: Any) -> Two:
    scene = scenes.make_scene(family) if scene is None else scene
    scene.steps = 2
    anna, rex = scene.subject(seed), scene.subject(seed + 1)
    bindings = [
        scene.bind(subject, token, noun, **binding)
        for subject, (token, noun) in zip((anna, rex), NOUNS.items(), strict=True)
    ]
    return Two(scene, anna, rex, *scene.apply(*bindings))


@functools.cache
def _two_of(family: str) -> Two:
    return make_two(family)


@pytest.fixture
def two(family: str) -> Two:
    return _two_of(family)


def through(
    node: str, *pairs: Pair, names: Sequence[str] = ("conditioning",), **inputs: Any
) -> Pair:
    """What one of ComfyUI's nodes makes of either side."""
    sides = zip(*pairs, strict=True)
    return Pair(
        *(pack.run_host(node, **dict(zip(names, side, strict=True)), **inputs) for side in sides)
    )


def combine(first: Pair, second: Pair) -> Pair:
    names = ("conditioning_1", "conditioning_2")
    return through("ConditioningCombine", first, second, names=names)


def to_from(node: str, to: Pair, source: Pair, **inputs: Any) -> Pair:
    names = ("conditioning_to", "conditioning_from")
    return through(node, to, source, names=names, **inputs)


def assert_equals_the_value_table(
    two: Two,
    positive: Pair,
    negative: Pair,
    known: Sequence[tuple[torch.Tensor, dict[int, reference.NaiveSubject]]],
    **sampling: Any,
) -> None:
    """`known`: the contexts that bound rows read, and the subjects in them."""
    found = two.scene.sample(two.model, positive.bound, negative.bound, **sampling)
    rows = reference.rows_reading(known)
    expected = two.scene.sample_naively(rows, positive.plain, negative.plain, **sampling)
    host = two.scene.sample(two.scene.model, positive.plain, negative.plain, **sampling)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    assert scenes.relative_difference(host, expected) > VISIBLE


def assert_is_exactly_the_host(two: Two, positive: Pair, negative: Pair) -> None:
    found = two.scene.sample(two.model, positive.bound, negative.bound)
    host = two.scene.sample(two.scene.model, positive.plain, negative.plain)
    assert torch.equal(found, host)


def warnings_of(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "Nested Attention" in record.getMessage()
    ]


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


class TestConcat:
    """ComfyUI keeps the extras of `conditioning_to` alone."""

    def test_the_first_prompts_subjects_act(self, two, caplog):
        first, second = two.encode("a <anna> here"), two.encode("in a park")
        positive = to_from("ConditioningConcat", first, second)
        known = [(positive.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, positive, two.encode("bad"), known)
        assert warnings_of(caplog) == []

    def test_the_second_prompts_subjects_are_missed_and_named(self, two, caplog):
        plain, bound = two.encode("in a park"), two.encode("a <anna> with <rex>")
        positive = to_from("ConditioningConcat", plain, bound)
        assert_is_exactly_the_host(two, positive, two.encode("bad"))
        (warning,) = warnings_of(caplog)
        assert "<anna>, <rex> " in warning
        assert "ConditioningConcat" in warning

    def test_only_what_is_missing_is_named(self, two, caplog):
        first, second = two.encode("a <anna> here"), two.encode("<rex>")
        positive = to_from("ConditioningConcat", first, second)
        known = [(positive.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, positive, two.encode("bad"), known)
        (warning,) = warnings_of(caplog)
        assert "<rex>" in warning
        assert "<anna>" not in warning


class TestAverage:
    """ComfyUI keeps the extras of `conditioning_to` alone, at any strength."""

    @pytest.mark.parametrize("strength", [1.0, 0.4])
    def test_the_first_prompts_subjects_act_in_full(self, two, caplog, strength):
        first, second = two.encode("a <anna> here"), two.encode(LONG + "in a park")
        positive = to_from("ConditioningAverage", first, second, conditioning_to_strength=strength)
        known = [(positive.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, positive, two.encode("bad"), known)
        assert warnings_of(caplog) == []

    def test_the_second_prompts_subjects_are_missed_and_named(self, two, caplog):
        positive = to_from(
            "ConditioningAverage",
            two.encode("in a park"),
            two.encode("a <anna>"),
            conditioning_to_strength=0.3,
        )
        assert_is_exactly_the_host(two, positive, two.encode("bad"))
        (warning,) = warnings_of(caplog)
        assert "<anna>" in warning
        assert "ConditioningAverage" in warning


class PhotoMaker:
    """Stands for PhotoMaker's image model, of which no weights are here."""

    load_device = torch.device("cpu")

    def __call__(self, id_pixel_values, prompt_embeds, class_tokens_mask):
        shifted = prompt_embeds * torch.where(class_tokens_mask[0, :, None], -1.0, 1.0)
        assert not torch.equal(shifted, prompt_embeds)
        return shifted + 0 * id_pixel_values.mean()


def _photomaker(clip: Any, text: str) -> Any:
    image = torch.rand(1, 40, 40, 3, generator=torch.Generator().manual_seed(1))
    inputs = {"photomaker": PhotoMaker(), "image": image, "clip": clip, "text": text}
    return pack.run_host("PhotoMakerEncode", extra="nodes_photomaker", **inputs)


class TestPhotoMaker:
    """Its text node encodes without a dictionary, so no map can travel with it."""

    def test_its_prompt_is_the_hosts_and_the_token_is_named(self, two, caplog):
        text = "a {} photomaker in a park"
        positive = Pair(
            _photomaker(two.clip, text.format("<anna>")),
            _photomaker(two.scene.clip, text.format("woman")),
        )
        assert torch.equal(positive.bound[0][0], positive.context)
        assert_is_exactly_the_host(two, positive, two.encode("bad"))
        (warning,) = warnings_of(caplog)
        assert "<anna>" in warning
        assert "PhotoMaker" in warning

    def test_a_bound_prompt_beside_it_acts(self, two, caplog):
        text = "a {} photomaker in a park"
        other = Pair(
            _photomaker(two.clip, text.format("<anna>")),
            _photomaker(two.scene.clip, text.format("woman")),
        )
        bound = two.encode("a <anna> here")
        known = [(bound.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, combine(other, bound), two.encode("bad"), known)
        assert warnings_of(caplog) == []

    def test_after_its_prompt_is_edited_nothing_is_said(self, two, caplog):
        for text in ("<anna> photomaker", "a woman photomaker"):
            positive = _photomaker(two.clip, text)
            two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        assert len(warnings_of(caplog)) == 1


class TestTheWarning:
    def test_normal_use_says_nothing(self, two, caplog):
        encode = two.scene.encode
        positive, negative = encode(two.clip, "a <anna>"), encode(two.clip, "bad <rex>")
        plain = encode(two.clip, "a park")
        for conditionings in [(positive, negative), (plain, plain), (positive, plain)]:
            two.scene.sample(two.model, *conditionings)
        assert warnings_of(caplog) == []

    def test_tokens_counted_before_they_are_encoded_say_nothing(self, two, caplog):
        two.clip.tokenize("a <anna>")
        positive = two.scene.encode(two.clip, "a <anna>")
        two.clip.tokenize("a <anna>")
        for prompt in (positive, two.scene.encode(two.clip, "a park")):
            two.scene.sample(two.model, prompt, two.scene.encode(two.clip, "bad"))
        assert warnings_of(caplog) == []

    def test_it_comes_at_every_sampling_until_the_prompt_is_edited(self, two, caplog):
        lost, plain = two.encode("a <anna>"), two.encode("a park")
        positive = to_from("ConditioningConcat", plain, lost)
        for expected in (1, 2):
            two.scene.sample(two.model, positive.bound, plain.bound)
            assert len(warnings_of(caplog)) == expected
        del lost, positive  # as ComfyUI drops what an edited node had put out
        gc.collect()
        two.scene.sample(two.model, two.encode("a dog").bound, plain.bound)
        assert len(warnings_of(caplog)) == 2

    def test_a_prompt_encoded_for_another_controlnet_says_nothing(self, two, caplog):
        positive = pack.run_host(
            "CLIPTextEncodeControlnet",
            extra="nodes_cond",
            clip=two.clip,
            conditioning=two.scene.encode(two.clip, "a <anna>"),
            text="<anna>",
        )
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        assert warnings_of(caplog) == []

    def test_a_token_that_sdxls_two_prompts_dispute_is_named(self, caplog):
        two = make_two("sdxl", seed=20)
        sizes = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
        positive = pack.run_host(
            "CLIPTextEncodeSDXL",
            extra="nodes_clip_sdxl",
            clip=two.clip,
            text_g="a <anna>",
            text_l="a <rex>",
            **dict.fromkeys(sizes, 64),
        )
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        (warning,) = warnings_of(caplog)
        assert "<rex>" in warning
        assert "<anna>" not in warning


class TestModelAndClipFromDifferentNodes:
    def test_equal_bindings_of_two_apply_nodes_mean_the_same_subject(self, two):
        again = make_two(two.scene.family)
        positive = Pair(again.encode("a <anna>").bound, two.encode("a <anna>").plain)
        known = [(positive.context, two.slots({2: "<anna>"}))]
        assert_equals_the_value_table(two, positive, two.encode("bad"), known)

    def test_a_token_lost_on_the_way_is_named_across_nodes(self, two, caplog):
        again = make_two(two.scene.family)
        lost = to_from("ConditioningConcat", again.encode("a park"), again.encode("<anna>"))
        two.scene.sample(two.model, lost.bound, two.encode("bad").bound)
        assert len(warnings_of(caplog)) == 1

    def test_another_subject_of_the_same_token_is_the_host(self, two):
        other = make_two(two.scene.family, seed=40)
        positive = Pair(other.encode("a <anna>").bound, two.encode("a <anna>").plain)
        assert_is_exactly_the_host(two, positive, two.encode("bad"))

    @pytest.mark.smoke
    def test_a_bound_model_with_the_plain_text_encoder_is_the_host(self, two):
        plain = two.scene.encode(two.scene.clip, "a <anna>")
        assert_is_exactly_the_host(two, Pair(plain, plain), two.encode("bad"))

    @pytest.mark.smoke
    def test_a_plain_model_with_the_bound_text_encoder_is_the_host(self, two):
        positive, negative = two.encode("a <anna>"), two.encode("bad")
        found = two.scene.sample(two.scene.model, positive.bound, negative.bound)
        host = two.scene.sample(two.scene.model, positive.plain, negative.plain)
        # A map on one side alone: ComfyUI runs the two apart.
        assert scenes.relative_difference(found, host) < ROUNDING
        alone = {"cfg": 1.0}
        assert torch.equal(
            two.scene.sample(two.scene.model, positive.bound, negative.bound, **alone),
            two.scene.sample(two.scene.model, positive.plain, negative.plain, **alone),
        )
