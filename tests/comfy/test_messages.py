"""Nothing that a user bound stays without effect in silence, and nothing is said of what works."""

from __future__ import annotations

import html
import logging
import sys
import unicodedata

import pack
import pytest
import torch
from two_subjects import make_two, two_of, warnings_of


@pytest.fixture(autouse=True)
def at_info(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def two(family):
    return two_of(family)


@pytest.fixture
def sd15_two():
    return two_of("sd15")


def sample(two, positive, negative="bad", model=None, clip=None, **options):
    clip = two.clip if clip is None else clip
    conditionings = [two.scene.encode(clip, text) for text in (positive, negative)]
    return two.scene.sample(two.model if model is None else model, *conditionings, **options)


def said(caplog, *words):
    """The sentences that hold all of these words."""
    return [
        each
        for each in caplog.messages
        if each.startswith("Nested Attention: ") and all(word in each for word in words)
    ]


class TestWhoActed:
    def test_rows_steps_and_attention_of_each_are_told_at_every_sampling(self, two, caplog):
        for nth in (1, 2):
            sample(two, "<anna> with <rex>", batch=2)
            assert len(said(caplog, "<anna> acted: 2 pictures, steps 1-2 of 2, ")) == nth
            assert len(said(caplog, "<rex> acted: 2 pictures, steps 1-2 of 2, ")) == nth
        assert warnings_of(caplog) == []

    def test_the_attention_is_the_mean_of_the_recorded_maps(self, sd15_two, caplog):
        two = sd15_two
        model, record = pack.run("RecordMaps", model=two.model)
        sample(two, "a <anna>", model=model)
        mean = torch.stack([each.attention.float().mean() for each in record.maps]).mean()
        (sentence,) = said(caplog, "<anna> acted")
        assert abs(float(sentence.split(", ")[-1].split("%")[0]) - 100 * float(mean)) < 0.1

    def test_a_part_of_the_sampling(self, sd15, caplog):
        model, clip = sd15.apply(sd15.bind(start_percent=0.5))
        conditionings = [sd15.encode(clip, text) for text in ("<anna>", "bad")]
        sd15.sample(model, *conditionings, steps=6)
        (sentence,) = said(caplog, "<anna> acted")
        assert "steps 1" not in sentence
        assert sentence.split("steps ")[1].split(" of ")[0].endswith("6")

    def test_samplers_that_call_the_model_twice_count_steps(self, sd15_two, caplog):
        sample(sd15_two, "<anna>", sampler="heun")
        assert said(caplog, "steps 1-2 of 2")


class TestNotWritten:
    @pytest.mark.parametrize(
        "prompt, similar",
        [
            ("a portrait of <Anna>", "<Anna>"),
            ("a portrait of anna", "anna"),
            ("a portrait of < anna >", "< anna >"),
            ("a portrait of <ana>", "<ana>"),
        ],
    )
    def test_what_was_probably_meant_is_named(self, sd15_two, caplog, prompt, similar):
        sample(sd15_two, prompt)
        (warning,) = said(caplog, "<anna> does not act")
        assert f"one says {similar}." in warning
        assert warning in warnings_of(caplog)

    def test_all_left_out_is_a_warning_and_one_of_several_is_not(self, sd15_two, caplog):
        sample(sd15_two, "a park with <anna>")
        assert said(caplog, "<rex> does not act", "no prompt of this sampling says <rex>")
        assert warnings_of(caplog) == []
        sample(sd15_two, "a park")
        assert len(warnings_of(caplog)) == 2

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_ways_of_writing_an_accent_are_one_word(self, sd15, caplog, form):
        model, clip = sd15.apply(sd15.bind(token=unicodedata.normalize("NFD", "<zoë>")))
        text = unicodedata.normalize(form, "a photo of <zoë>")
        sd15.sample(model, sd15.encode(clip, text), sd15.encode(clip, "bad"))
        assert said(caplog, "acted: 1 picture")
        assert warnings_of(caplog) == []

    def test_a_token_that_the_page_eats(self, sd15, caplog):
        model, clip = sd15.apply(sd15.bind(token="{anna}"))
        sd15.sample(model, sd15.encode(clip, "a photo of anna"), sd15.encode(clip, "bad"))
        assert said(caplog, "{anna} does not act", "The page reads {a|b} as a choice")


class TestUnknownWords:
    def test_are_named_with_what_was_meant(self, sd15_two, caplog):
        sample(sd15_two, "<anna> and <Rex>", "ugly <bad>")
        assert said(caplog, "the prompt says <Rex>", "Did you mean <rex>?")
        assert said(caplog, "the prompt says <bad>", "bound are: <anna>, <rex>")

    def test_bound_words_and_other_packs_syntax_are_not(self, sd15_two, caplog):
        sample(sd15_two, "<anna> and <rex> <lora:pixel:0.8>")
        assert said(caplog, "the prompt says") == []


class TestWrongWires:
    def test_the_checkpoints_own_clip(self, two, caplog):
        sample(two, "a <anna>", clip=two.scene.clip)
        (warning,) = said(caplog, "<anna> does not act")
        assert "2 of 2 prompts of this sampling were not encoded with the CLIP of Apply" in warning

    def test_the_checkpoints_own_clip_for_one_of_both(self, two, caplog):
        positive = two.scene.encode(two.scene.clip, "a <anna>")
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        assert said(caplog, "<anna> does not act", "1 of 2 prompts")

    def test_the_checkpoints_own_model(self, two, caplog):
        sample(two, "a <anna>", model=two.scene.model)
        (warning,) = warnings_of(caplog)
        assert "the prompt contains <anna>, but is sampled with a MODEL that does not" in warning

    def test_apply_as_the_second_model_of_a_merge(self, sd15_two, caplog):
        two = sd15_two
        merged = pack.run_host(
            "ModelMergeSimple",
            extra="nodes_model_merging",
            model1=two.scene.model,
            model2=two.model,
            ratio=0.5,
        )
        sample(two, "a <rex>", model=merged)
        (warning,) = warnings_of(caplog)
        assert "<rex>" in warning
        assert "put Apply behind the merge" in warning

    def test_another_subject_under_the_same_token(self, sd15_two, caplog):
        other = make_two("sd15", seed=40)
        positive = other.scene.encode(other.clip, "a <anna>")
        sd15_two.scene.sample(sd15_two.model, positive, other.scene.encode(other.clip, "bad"))
        assert said(caplog, "<anna> does not act", "another subject's", "from the same one")

    def test_an_emptied_negative_prompt_is_no_strangers(self, sd15_two, caplog):
        two = sd15_two
        positive = two.scene.encode(two.clip, "a portrait of <Anna>")
        zeroed = pack.run_host("ConditioningZeroOut", conditioning=positive)
        two.scene.sample(two.model, two.scene.encode(two.clip, "a park"), zeroed)
        assert said(caplog, "<anna> does not act", "Write <anna> where the subject is to appear")

    def test_a_prompt_that_was_emptied(self, sd15_two, caplog):
        two = sd15_two
        positive = two.scene.encode(two.clip, "a <anna>")
        zeroed = pack.run_host("ConditioningZeroOut", conditioning=positive)
        two.scene.sample(two.model, zeroed, two.scene.encode(two.clip, "bad"))
        assert said(caplog, "<anna> did not act", "was emptied (ConditioningZeroOut)")


class TestSettings:
    @pytest.mark.parametrize(
        "settings, why",
        [
            ({"strength": 0.0}, "its strength is 0"),
            ({"start_percent": 0.0, "end_percent": 0.0}, "has no step in this sampler"),
        ],
    )
    def test_that_leave_a_subject_nothing_are_named(self, sd15, caplog, settings, why):
        model, clip = sd15.apply(sd15.bind(**settings))
        conditionings = [sd15.encode(clip, text) for text in ("<anna>", "bad")]
        # The last of these steps are behind the end at 0 %.
        sd15.sample(model, *conditionings, denoise=0.5)
        assert said(caplog, "<anna> did not act", why)


class TestText:
    def test_words_exchanged_between_tokens_and_encoding_are_noticed(self, two, caplog):
        """As nodes that cut attention do: they tokenise, put padding for words, and encode."""
        tokens = two.clip.tokenize("a <anna> in a red coat")
        for chunks in tokens.values():
            chunks[0][5] = (*[two.clip.tokenize("blue")[next(iter(tokens))][0][1][0]], 1.0)
        positive = two.clip.encode_from_tokens_scheduled(tokens)
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        (warning,) = warnings_of(caplog)
        assert "is not the prompt in which <anna> was bound" in warning
        assert said(caplog, "<anna> acted")

    def test_weights_by_another_node_are_no_other_words(self, two, caplog):
        tokens = two.clip.tokenize("a <anna> in a red coat")
        weighted = {
            key: [[(token, 1.1, *rest) for token, _, *rest in chunk] for chunk in chunks]
            for key, chunks in tokens.items()
        }
        positive = two.clip.encode_from_tokens_scheduled(weighted)
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        assert warnings_of(caplog) == []

    def test_a_context_that_was_mixed_afterwards_is_noticed(self, two, caplog):
        ((context, extras),) = two.scene.encode(two.clip, "a <anna> here")
        positive = [[0.7 * context + 0.1, extras]]
        two.scene.sample(two.model, positive, two.scene.encode(two.clip, "bad"))
        assert said(caplog, "is not the prompt in which <anna> was bound")

    def test_the_same_text_behind_a_copy_is_the_same(self, two, caplog):
        ((context, extras),) = two.scene.encode(two.clip, "a <anna> here")
        two.scene.sample(two.model, [[context.clone(), extras]], two.scene.encode(two.clip, "bad"))
        assert warnings_of(caplog) == []


def test_long_texts_cost_little_and_make_short_messages(sd15_two, caplog):
    words = " ".join(f"word{n}" for n in range(3000))
    sample(sd15_two, f"{words} <{'x' * 60}> <anma>")
    assert all(len(each) < 2100 for each in caplog.messages)
    assert said(caplog, "one says <anma>")


def test_what_is_said_of_a_subject_is_shown_on_its_node(sd15, monkeypatch, caplog):
    shown = []

    class Page:
        def send_progress_text(self, text, node_id, sid=None):
            shown.append((node_id, text))

    class Server:
        instance = Page()

    class Module:
        PromptServer = Server

    monkeypatch.setitem(sys.modules, "server", Module())
    binding = pack.module("nested_core.binding").bind(sd15.subject(), "<anna>", node="7")
    model, clip = sd15.apply(binding)
    conditionings = [sd15.encode(clip, text) for text in ("<anna>", "bad")]
    sd15.sample(model, *conditionings)
    ((node, text),) = shown
    assert node == "7"
    assert html.unescape(text).startswith("<anna> acted: 1 picture")
    assert "<" not in text  # the page would take it for a tag

    def gone(*_):
        raise ConnectionError("the page went away")

    monkeypatch.setattr(Page, "send_progress_text", gone)
    sd15.sample(model, *conditionings)
    assert len(said(caplog, "<anna> acted")) == 2
