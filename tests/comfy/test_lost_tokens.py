"""Nodes that lose bindings on the way to the sampler: how far they go, and the warning."""

from __future__ import annotations

import gc
from typing import Any

import pack
import pytest
import scenes
import torch
from two_subjects import (
    LONG,
    ROUNDING,
    Pair,
    assert_equals_the_value_table,
    assert_is_exactly_the_host,
    combine,
    make_two,
    to_from,
    warnings_of,
)


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
        if strength == 1.0:
            assert warnings_of(caplog) == []
        else:
            (warning,) = warnings_of(caplog)
            assert "is not the prompt in which <anna> was bound" in warning

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
        lost = [each for each in warnings_of(caplog) if "written in a prompt" in each]
        assert len(lost) == 1


class TestTheWarning:
    def test_normal_use_says_nothing(self, two, caplog):
        encode = two.scene.encode
        positive, negative = encode(two.clip, "a <anna>"), encode(two.clip, "bad <rex>")
        plain = encode(two.clip, "a park")
        for conditionings in [(positive, negative), (positive, plain)]:
            two.scene.sample(two.model, *conditionings)
        assert warnings_of(caplog) == []

    def test_tokens_counted_before_they_are_encoded_say_nothing(self, two, caplog):
        two.clip.tokenize("a <anna>")
        positive = two.scene.encode(two.clip, "a <anna>")
        two.clip.tokenize("a <anna>")
        for prompt in (positive, two.scene.encode(two.clip, "a park")):
            two.scene.sample(two.model, prompt, two.scene.encode(two.clip, "bad"))
        assert not any("written in a prompt" in each for each in warnings_of(caplog))

    def test_it_comes_at_every_sampling_until_the_prompt_is_edited(self, two, caplog):
        lost, plain = two.encode("a <anna>"), two.encode("a park")
        positive = to_from("ConditioningConcat", plain, lost)
        for expected in (1, 2):
            two.scene.sample(two.model, positive.bound, plain.bound)
            assert len(warnings_of(caplog)) == expected
        del lost, positive  # as ComfyUI drops what an edited node had put out
        gc.collect()
        two.scene.sample(two.model, two.encode("<rex>").bound, plain.bound)
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
