"""Packs that read, encode and mix prompts in a way of their own."""

from __future__ import annotations

import functools
from dataclasses import replace

import composition
import pytest
import scenes
import torch
from scenes import plain_prompt, shared_scene
from stand_ins import layers, negated_values, texts
from two_subjects import warnings_of
from value_table import ValueTable


def _negated(subject):
    """One whose values point the other way, as its text's do."""
    weights = subject.site_weights

    def negated(site):
        to_k, to_v = weights(site)
        return to_k, -to_v

    return replace(subject, site_weights=negated)


class Halved(ValueTable):
    """The context says every token twice; the layers see it once."""

    def slots_of(self, context):
        found = super().slots_of(context)
        period = self._known[0][0].shape[1]
        return {at // period * (period // 2) + at % period: each for at, each in found.items()}


# With the sign of the value of each bound token.
PROMPTS = {
    "a weight on another word": ("a <anna> in (rain:-0.7) at night", {2: 1}),
    "on the bound token": ("a (<anna>:-0.9) in the rain", {2: -1}),
    "on one of two": ("(<rex>:-1) and <anna>, <rex> again", {1: -1, 3: 1, 5: 1}),
    "in a second chunk": ("a <anna> " + "very " * 80 + "(<anna>:-1)", {2: 1}),
}


class TestNegatedValues:
    def _known(self, scene, positive, signs):
        anna, rex = scene.naive(scene.subject(0)), scene.naive(scene.subject(1))
        subjects = {place: (rex if place in (1, 5) else anna) for place in signs}
        if signs == {2: 1} and positive[0][0].shape[1] > 154:
            subjects[85], signs = anna, {2: 1, 85: -1}  # the eighth of the second chunk
        return [
            (
                positive[0][0],
                {
                    place: _negated(each) if signs[place] < 0 else each
                    for place, each in subjects.items()
                },
            )
        ]

    def _sample(self, family, text, signs, order, negative=composition.NEGATIVE, make=None):
        scene = shared_scene(family)
        double = negated_values.on_clip(scene.clip)
        texts = [scene.encode(double, each) for each in (plain_prompt(text), negative)]
        table = Halved(scene, self._known(scene, texts[0], signs))
        model = negated_values.on_model(scene.model)
        if make is None:
            model = table.on_patches(model)
        else:
            model = table.behind(model, make)
        right = scene.sample(model, *texts)
        bindings = [scene.bind(), scene.bind(scene.subject(1), "<rex>", "dog")]
        if order == "before":
            model, clip = scene.apply(
                *bindings, model=negated_values.on_model(scene.model), clip=double
            )
        else:
            model, clip = scene.apply(*bindings)
            model, clip = negated_values.on_model(model), negated_values.on_clip(clip)
        if make is not None:
            model = layers.as_object_patches(model, make)
        found = scene.sample(model, *(scene.encode(clip, each) for each in (text, negative)))
        host = scene.sample(negated_values.on_model(scene.model), *texts)
        return found, right, host

    @pytest.mark.parametrize("order", composition.PLACES)
    @pytest.mark.parametrize("name", PROMPTS)
    @pytest.mark.parametrize("family", ["sd15", "sdxl"])
    def test_subjects_follow_their_tokens(self, family, name, order, caplog):
        found, right, host = self._sample(family, *PROMPTS[name], order)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert scenes.relative_difference(host, right) > composition.VISIBLE
        assert not warnings_of(caplog)

    def test_beside_a_longer_prompt_both_are_repeated(self):
        text, signs = PROMPTS["on the bound token"]
        found, right, _ = self._sample("sd15", text, signs, "behind", "bad " * 100)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE

    def test_where_layers_have_a_forward_of_their_own(self):
        text, signs = PROMPTS["on the bound token"]
        found, right, _ = self._sample("sd15", text, signs, "behind", make=layers.scaled)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_node_behind_the_text_encoder_is_followed(self, sign, caplog):
        scene, text = shared_scene("sd15"), "a <anna> in the rain"
        double = functools.partial(negated_values.on_conditioning, negated=[2] if sign < 0 else [])
        texts = [
            double(scene.encode(scene.clip, each))
            for each in (plain_prompt(text), composition.NEGATIVE)
        ]
        table = Halved(scene, self._known(scene, texts[0], {2: sign}))
        model = negated_values.on_model(scene.model)
        right = scene.sample(table.on_patches(model), *texts)
        model, clip = scene.apply(scene.bind(), model=model)
        found = scene.sample(
            model, *(double(scene.encode(clip, each)) for each in (text, composition.NEGATIVE))
        )
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert (
            scenes.relative_difference(
                scene.sample(negated_values.on_model(scene.model), *texts), right
            )
            > composition.VISIBLE
        )
        assert not warnings_of(caplog)

    def test_without_the_layers_side_the_token_s_key_is_the_subject_s(self):
        """Every word is said twice then, and the host reads both."""
        scene, text = shared_scene("sd15"), "a <anna> in the rain"
        double = negated_values.on_clip(scene.clip)
        texts = [scene.encode(double, each) for each in (plain_prompt(text), composition.NEGATIVE)]
        table = ValueTable(scene, [(texts[0][0][0], {4: scene.naive(scene.subject())})])
        right = scene.sample(table.on_patches(scene.model), *texts)
        model, clip = scene.apply(scene.bind(), clip=double)
        found = scene.sample(model, *(scene.encode(clip, e) for e in (text, composition.NEGATIVE)))
        assert scenes.relative_difference(found, right) < composition.TOLERANCE

    def test_without_the_text_encoder_s_side_it_is_the_host_s_and_said_once(self, caplog):
        """Half of the tokens are dropped then."""
        scene, text = shared_scene("sd15"), "a <anna> " + "very " * 80
        model, clip = scene.apply(scene.bind(), model=negated_values.on_model(scene.model))
        found = scene.sample(model, scene.encode(clip, text), scene.encode(clip, "bad " * 80))
        texts = [scene.encode(scene.clip, each) for each in (plain_prompt(text), "bad " * 80)]
        assert torch.equal(found, scene.sample(negated_values.on_model(scene.model), *texts))
        (warning,) = warnings_of(caplog)
        assert "shape of cross-attention" in warning


class TestTextNodes:
    """What they do to a bound prompt, beside what the host makes of the noun's."""

    TEXT = "a <anna> in the rain"

    def _sample(self, encode, text=TEXT, known=None, clip=None):
        """Ours, the value table's (or the host's without `known`), and the positive context."""
        scene = shared_scene("sd15")
        plain_clip = scene.clip if clip is None else clip
        prompts = [
            encode(plain_clip, plain_prompt(text)),
            scene.encode(scene.clip, composition.NEGATIVE),
        ]
        plain = scene.sample(scene.model, *prompts)
        if known is not None:
            subject = scene.naive(scene.subject())
            table = ValueTable(scene, [(prompts[0][0][0], dict.fromkeys(known, subject))])
            right = scene.sample(table.on_patches(scene.model), *prompts)
            assert scenes.relative_difference(plain, right) > composition.VISIBLE
        model, bound = scene.apply(scene.bind(), clip=clip)
        positive = encode(bound, text)
        assert torch.equal(positive[0][0], prompts[0][0][0])
        found = scene.sample(model, positive, prompts[1])
        return found, plain if known is None else right

    @pytest.mark.parametrize("name", ["weighed_by_hand", "straight_from_the_model"])
    def test_one_that_hands_out_no_extras_loses_the_subject_and_it_is_said(self, name, caplog):
        found, plain = self._sample(getattr(texts, name))
        assert torch.equal(found, plain)
        (warning,) = warnings_of(caplog)
        assert "<anna>" in warning
        assert "written in a prompt" in warning

    def test_one_that_changes_the_context_keeps_it_and_it_is_said(self, caplog):
        found, right = self._sample(texts.weighed_with_extras, known=[2])
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        (warning,) = warnings_of(caplog)
        assert "is not the prompt in which <anna> was bound" in warning

    @pytest.mark.parametrize("mixed", [1.0, 0.5])
    def test_a_word_that_is_cut_out_is_noticed(self, mixed, caplog):
        encode = functools.partial(texts.cut, place=5, mixed=mixed)
        found, right = self._sample(encode, known=[2])
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        (warning,) = warnings_of(caplog)
        assert "is not the prompt in which <anna> was bound" in warning

    def test_a_bound_word_that_is_cut_out_is_missed(self, caplog):
        found, plain = self._sample(functools.partial(texts.cut, place=2))
        assert torch.equal(found, plain)
        (warning,) = warnings_of(caplog)
        assert "<anna>" in warning

    def test_parts_side_by_side_keep_the_first_one_s(self, caplog):
        found, right = self._sample(texts.in_parts, "a <anna> BREAK in the rain", [2])
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert not warnings_of(caplog)

    def test_parts_side_by_side_miss_the_others(self, caplog):
        found, plain = self._sample(texts.in_parts, "in the rain BREAK a <anna>")
        assert torch.equal(found, plain)
        (warning,) = warnings_of(caplog)
        assert "<anna>" in warning

    def test_a_tokenizer_object_of_its_own_is_named(self, caplog):
        clip = texts.with_own_tokenizer(shared_scene("sd15").clip)
        found, plain = self._sample(shared_scene("sd15").encode, clip=clip)
        assert torch.equal(found, plain)
        first, *_ = warnings_of(caplog)
        assert "OwnTokenizer" in first
        assert "weight" not in first

    def test_a_clip_of_its_own_kind_is_kept(self, caplog):
        clip = texts.as_own_clip(shared_scene("sd15").clip)
        found, right = self._sample(shared_scene("sd15").encode, "a (<anna>:1.4)", [2], clip)
        assert scenes.relative_difference(found, right) < composition.TOLERANCE
        assert not warnings_of(caplog)
