"""Bound tokens through ComfyUI's own tokenizers and text encoders: what is read is the noun prompt,
bit for bit, and the slot map knows where each noun ends."""

from __future__ import annotations

import copy
import pickle
import re

import comfy.conds
import comfy.sd
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_encoders import (
    NOUNS,
    SLOTS,
    Clips,
    assert_reads_the_noun_prompt,
    clips_of,
    is_same,
    slots_of,
    split_at_tokens,
    with_nouns,
)
from two_subjects import warnings_of

# The same number of text tokens, and only the last one differs.
TWINS = {"woman": "zebra", "black dog": "black cat", "queen": "king", "ROBOT": "ZEBRA"}


def expected_slots(clips: Clips, text: str) -> dict[int, str]:
    """Found from outside: the first row that changes when only a noun's last token does.

    The text encoders are causal, so no row before it can.
    """
    expected: dict[int, str] = {}
    plain = with_nouns(text)
    pieces = split_at_tokens(text)
    for place in range(1, len(pieces), 2):
        twin = TWINS[NOUNS[pieces[place]]]
        changed = with_nouns("".join([*pieces[:place], twin, *pieces[place + 1 :]]))
        _assert_one_token_differs(clips.plain, plain, changed)
        before, after = (clips.scene.encode(clips.plain, each)[0][0] for each in (plain, changed))
        for half in (slice(0, tiny.CLIP_L_WIDTH), slice(tiny.CLIP_L_WIDTH, None)):
            differs = (before[..., half] != after[..., half]).any(-1)[0]
            if differs.any():
                expected[int(differs.int().argmax())] = pieces[place]
    return expected


def _assert_one_token_differs(clip: comfy.sd.CLIP, plain: str, changed: str) -> None:
    for before, after in zip(
        clip.tokenize(plain).values(), clip.tokenize(changed).values(), strict=True
    ):
        differing = [
            a != b
            for chunk, other in zip(before, after, strict=True)
            for (a, _), (b, _) in zip(chunk, other, strict=True)
            if not isinstance(a, torch.Tensor)
        ]
        assert sum(differing) <= 1, "the oracle needs nouns whose last word stands alone"


FULL = "very " * 74  # with the start token, one place is left in the chunk
PROMPTS = [
    "<anna>",
    "a pencil drawing of <anna> in a coffee shop",
    "a <rex>",
    "<rex> and <anna>, <rex> again",
    "no token at all",
    "",
    # Weights and escapes.
    "a (<anna>:1.3) here",
    "a ((<anna>)) and (((<rex>)))",
    "(a <anna> (in a (<rex>:0.7) park:1.4):0.9) end",
    "[<anna>]",
    "(<anna>",
    "<anna>)",
    "(<anna>:1.2",
    "(<anna>:-0.5) <rex>",
    "(<anna>:x) (:<anna>) (<anna>:) ()",
    "\\(<anna>\\)",
    "(\\(<anna>\\):1.3)",
    "\\(a <anna>:1.3\\) b",
    "(<anna>\\):1.1)",
    "a\\ <anna>\\",
    # Signs beside a token.
    "<anna>'s hat",
    "<anna>, <rex>. <anna>! <rex>? <anna>; <rex>: <anna>",
    '"<anna>" / <rex>-<anna>_<rex>',
    "...<anna>...",
    "#<anna>#1 <rex>2",
    "a\n<anna>\n\n<rex>\t<anna>",
    "  <anna>  ",
    "<anna>🙂 🙂<rex>",
    "👩‍👩‍👧 <anna> 猫 <rex> Ñandú ǅ",
    "<|endoftext|> <anna> <|startoftext|> <rex>",
    "<anna></w><rex></w>",
    # Tokens that begin other tokens, letters that are not the token's.
    "<an <anna> <an, <anna>",
    "<an<anna>",
    "<Anna> <ANNA> <anna> <LOUD> <loud>",
    "<<anna>> <a, <anna>",
    # Embeddings.
    "embedding:good <anna>",
    "<anna> embedding:good",
    "<anna>, embedding:triple, <rex> embedding:good <anna>",
    "(embedding:triple <anna>:1.2) <rex>",
    "a embedding:triple\n<anna>",
    "<anna>\nembedding:good\n<rex>",
    "<anna>embedding:good <rex>",
    "embedding:good, <anna>",
    "embedding:missing <anna>",
    "embedding:good.safetensors <anna>",
    "embedding:wrong <anna> embedding:good <rex>",
    "a <anna> embedding:wrong (<rex>:1.2) embedding:wrong b <anna>",
    "embedding:sd15 <anna> embedding:sd15 <rex>",
    # Several chunks.
    FULL + "<anna>",
    FULL + "<anna> and <rex>",
    FULL + "very <anna>",
    FULL + "<rex> in a park",  # the noun's two words stand in two chunks
    FULL + "(<rex>:1.2) in a park",  # a short segment moves as a whole
    "(" + "very " * 72 + "<rex> is long:1.1) (<anna>:1.2)",
    "(" + "so " * 60 + ") (very very very very very very very very very <anna> <rex>:1.1) x",
    "very " * 160 + "<anna> " + "very " * 80 + "<rex>",
    "embedding:wrong " + "very " * 80 + "embedding:wrong <anna>",
    "embedding:triple " * 26 + "<anna>",
]


@pytest.mark.parametrize("text", PROMPTS)
def test_the_text_encoder_reads_exactly_the_noun_prompt(clips, text):
    assert_reads_the_noun_prompt(clips, text)


@pytest.mark.parametrize("text", PROMPTS)
def test_the_row_of_each_nouns_last_token_is_bound(clips, text):
    assert clips.slots(text) == expected_slots(clips, text)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("no token at all", {}),
        ("<anna>", {1: "<anna>"}),
        ("a photo of (<anna>:1.3), smiling", {4: "<anna>"}),
        ("a photo of <rex>'s tail", {5: "<rex>"}),
        ("<anna> and <rex>, <anna>", {1: "<anna>", 4: "<rex>", 6: "<anna>"}),
        ("embedding:triple <anna>", {4: "<anna>"}),
        (FULL + "<anna>", {75: "<anna>"}),
        (FULL + "very <anna>", {77 + 1: "<anna>"}),
        (FULL + "<rex>", {77 + 1: "<rex>"}),
        (FULL + "(<rex>:1.2)", {77 + 2: "<rex>"}),
    ],
)
def test_the_bound_rows_are_these(clips, text, slots):
    assert_reads_the_noun_prompt(clips, text)
    assert clips.slots(text) == slots


def test_an_embedding_that_only_one_encoder_can_use_binds_the_row_of_each(sdxl_clips):
    # L keeps both vectors, start e e woman; G leaves them out, start woman.
    assert sdxl_clips.slots("embedding:sd15 <anna>") == {3: "<anna>", 1: "<anna>"}


# ---- any text: the tokenizer's own character offsets say which token holds the noun's end ----


def _slots_by_offsets(clips: Clips, text: str, token: str) -> dict[int, str]:
    """For prompts of one segment, without weights and embeddings."""
    *before, after = text.split(token)
    noun, plain, ends = NOUNS[token], "", []
    for piece in before:
        plain += piece + noun
        ends.append(len(plain))
    offsets = clips.plain.tokenizer.clip_l.tokenizer(plain + after, return_offsets_mapping=True)
    spans = [(i, span) for i, span in enumerate(offsets["offset_mapping"]) if span[0] < span[1]]
    places = [max(i for i, (start, _) in spans if start < end) - 1 for end in ends]
    return {place // 75 * 77 + 1 + place % 75: token for place in places}


@pytest.mark.parametrize(
    "text",
    [
        "<anna>ly, <anna>izer, s<anna>, un<anna>ed",
        "<anna><anna><anna>",
        "<anna>猫<anna>",
        "<anna>1<anna>2",
        "e\u0301<anna> e\u0323\u0301 <anna>",
        "<anna>s' <anna>'ll <anna>'d've <anna>n't",
        "ß<anna>İ",
        "x" * 300 + " <anna>",
        "<anna>" + "x" * 300 + " <anna>",
    ],
)
def test_a_noun_inside_a_longer_word_binds_the_token_that_holds_its_last_letter(clips, text):
    assert_reads_the_noun_prompt(clips, text)
    assert clips.slots(text) == _slots_by_offsets(clips, text, "<anna>")


@pytest.mark.parametrize("noun", ["WOMAN", "猫", "Mädchen", "e\u0301", "🙂", "3", "o'neill", "a.b"])
@pytest.mark.parametrize("text", ["a <anna>, nice", "x<anna>y <anna>\u200d", "<anna>", "<anna>'s"])
def test_any_noun_binds_its_last_token(clips, monkeypatch, noun, text):
    _, bound = clips.scene.apply(clips.scene.bind(token="<anna>", noun=noun))
    monkeypatch.setitem(NOUNS, "<anna>", noun)
    other = Clips(clips.family, clips.scene, clips.plain, bound, clips.ids)
    assert_reads_the_noun_prompt(other, text)
    assert other.slots(text) == _slots_by_offsets(other, text, "<anna>")


# An accent right behind a noun would become one letter with the noun's last.
LETTERS = "aeoWz ,.'-!1:;_\n\u200d🙂👩猫가ᄀʼßİσΣşﬁقع้é\U000f0000"
relaxed = settings(
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@relaxed
@given(st.lists(st.one_of(st.just("<anna>"), st.text(LETTERS, max_size=6)), max_size=9))
def test_any_letters_around_a_noun_leave_it_bound(pieces):
    text = "".join(pieces)
    for clips in map(clips_of, ("sd15", "sdxl")):
        assert_reads_the_noun_prompt(clips, text)
        assert clips.slots(text) == _slots_by_offsets(clips, text, "<anna>")


PIECES = [
    *NOUNS,
    *(f"({token}:1.3)" for token in NOUNS),
    "(", ")", ":1.2)", "\\(", "\\)", "\\", ", ", "'s", "\n", " - ", "🙂", " ",
    " a photo of ", " 猫 ", " embedding:good ", " embedding:triple, ", " embedding:wrong ",
    " embedding:sd15\n", " embedding:missing ", " very" * 9 + " ", " so" * 40 + " ", " (so" * 30 + " ",
]  # fmt: skip


@relaxed
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_any_mixture_of_syntax_is_read_and_bound_as_its_noun_prompt(pieces):
    # Two nouns without anything between them would be one word, and no oracle.
    text = re.sub("(?<=>|n)(?=<)", ",", "".join(pieces))
    for clips in map(clips_of, ("sd15", "sdxl")):
        assert_reads_the_noun_prompt(clips, text)
        assert clips.slots(text) == expected_slots(clips, text)


# ---- where a mark would change how the prompt is read ----


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("a photo embedding:<anna>, <rex>", "woman"),  # an embedding file of that name exists
        (" embedding:<anna>", "woman"),
        ("a (photo:<anna>) of <rex>", "1.5"),
    ],
)
def test_a_noun_that_is_read_as_syntax_is_left_unbound_and_said(clips, caplog, text, noun):
    _, clip = clips.scene.apply(
        clips.scene.bind(token="<anna>", noun=noun),
        clips.scene.bind(token="<rex>", noun="black dog"),
    )
    plain = text.replace("<anna>", noun).replace("<rex>", "black dog")
    tokens = clip.tokenize(text)
    assert all(
        is_same(a[0], b[0]) and a[1:] == b[1:]
        for key, chunks in clips.plain.tokenize(plain).items()
        for chunk, other in zip(tokens[key], chunks, strict=True)
        for a, b in zip(chunk, other, strict=True)
    )
    ((_, extras),) = clips.scene.encode(clip, text)
    assert slots_of(extras) == {}
    assert [text in message for message in warnings_of(caplog)] == [True, True]  # once per tokenize


def test_a_noun_of_several_words_may_name_an_embedding_before_its_last_word(clips):
    _, clip = clips.scene.apply(clips.scene.bind(token="<anna>", noun="triple woman"))
    ((_, extras),) = clips.scene.encode(clip, "a embedding:<anna> here")
    assert list(slots_of(extras)) == [5]


# ---- the slot map ----


def test_the_slot_map_has_the_texts_length_and_the_bindings_id(clips):
    context, extras = clips.encode("<rex> " + "very " * 80 + "<anna>")
    slots = extras["model_conds"][SLOTS]
    assert isinstance(slots, comfy.conds.CONDCrossAttn)
    assert slots.cond.shape == (1, context.shape[1], 1) == (1, 2 * 77, 1)
    assert (slots.cond.dtype, slots.cond.device.type) == (torch.int32, "cpu")
    expected = torch.zeros(1, 2 * 77, 1, dtype=torch.int32)
    expected[0, 2], expected[0, 77 + 8] = clips.ids["<rex>"], clips.ids["<anna>"]
    assert torch.equal(slots.cond, expected)


def test_a_prompt_without_a_bound_token_has_exactly_the_hosts_extras(clips):
    assert clips.encode("a woman").__getitem__(1).keys() == {"pooled_output"}


def test_tokens_have_exactly_the_hosts_keys_and_survive_copies(clips):
    tokens = clips.bound.tokenize("a <anna> (<rex>:1.2)", return_word_ids=True)
    assert list(tokens) == list(clips.plain.tokenize(""))
    for copied in (copy.deepcopy(tokens), pickle.loads(pickle.dumps(tokens))):
        encoded = [
            clips.bound.encode_from_tokens(each, return_dict=True) for each in (tokens, copied)
        ]
        assert torch.equal(encoded[0]["cond"], encoded[1]["cond"])
        assert clips.named(encoded[0]) == clips.named(encoded[1]) == {2: "<anna>", 4: "<rex>"}


def test_a_plain_text_encoder_reads_marked_tokens_as_its_own(clips):
    tokens = clips.bound.tokenize("a <anna>")
    found = clips.plain.encode_from_tokens(tokens, return_dict=True)
    expected = clips.plain.encode_from_tokens(clips.plain.tokenize("a woman"), return_dict=True)
    assert found.keys() == expected.keys()
    assert torch.equal(found["cond"], expected["cond"])
