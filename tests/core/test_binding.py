"""Bindings: their identity, their defaults, their union."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nested_core.binding import bind, merge_bindings
from nested_core.errors import BindingError
from nested_core.fidelity import balance_at


def test_the_id_depends_on_token_and_subject_alone(make_subject):
    anna, rex = make_subject(seed=1), make_subject(seed=2)
    first = bind(anna, "<anna>", "woman", strength=0.5)
    assert bind(make_subject(seed=1), "<anna>", "girl", token_weight=2.0).id == first.id
    assert bind(rex, "<anna>").id != first.id
    assert bind(anna, "<Anna>").id != first.id
    assert 0 < first.id < 2**31


def test_an_empty_noun_is_the_encoders_own(make_subject):
    assert bind(make_subject(), noun="").noun == "person"
    assert bind(make_subject(), noun=" black dog ").noun == "black dog"


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, True),
        ({"strength": 0.0}, False),
        ({"strength": 0.0, "token_weight": 2.0}, True),
        ({"strength": 0.1}, True),
    ],
)
def test_a_binding_that_cannot_act_knows_it(make_subject, settings, expected):
    assert bind(make_subject(), **settings).has_effect is expected


@pytest.mark.parametrize(
    "shape, pictures", [((4, 6), (1, 4, 6)), ((3, 4, 6), (3, 4, 6)), ((2, 1, 4, 6), (2, 4, 6))]
)
def test_masks_become_one_per_picture(make_subject, shape, pictures):
    mask = bind(make_subject(), mask=torch.full(shape, 1.5)).mask
    assert mask is not None
    assert mask.shape == pictures
    assert float(mask.max()) == 1.0


def test_a_later_binding_replaces_an_earlier_one_of_its_token(make_subject):
    a1, b1, a2 = (
        bind(make_subject(seed=i), token) for i, token in enumerate(("<a>", "<b>", "<a>"))
    )
    assert merge_bindings([a1, b1], [a2]) == (b1, a2)


@pytest.mark.parametrize("noun", ["(woman)", "woman\\", "embedding:anna"])
def test_a_noun_with_prompt_syntax_is_refused(make_subject, noun):
    with pytest.raises(BindingError, match="contains prompt syntax"):
        bind(make_subject(), noun=noun)


# Nothing that can be seen: white space of several scripts, joiners, blank letters, a lone accent.
BLANKS = [
    " ",
    "\t",
    "\u00a0",
    "\u2003\u3000",
    "\u200d",
    "\u200c\ufe0f",
    "\u3164",
    "\u2800",
    "\u0301",
]


@pytest.mark.parametrize("token", ["", *BLANKS])
def test_a_token_of_which_nothing_is_seen_is_refused(make_subject, token):
    with pytest.raises(BindingError, match=r"the token is empty\. Give the subject a word"):
        bind(make_subject(), token)


@pytest.mark.parametrize("noun", BLANKS)
def test_a_noun_of_which_nothing_is_seen_is_refused(make_subject, noun):
    with pytest.raises(
        BindingError,
        match=r"'<anna>': the noun '.*' has nothing that can be seen, .* leave the field",
    ):
        bind(make_subject(), "<anna>", noun)


@pytest.mark.parametrize(
    ("letter", "what"),
    [
        ("\ud800", "half of a surrogate pair"),
        ("\x00", "a control character or line break"),
        ("\x1b", "a control character or line break"),
        ("\t", "a control character or line break"),
        ("\n", "a control character or line break"),
        ("\r", "a control character or line break"),
        ("\x85", "a control character or line break"),
        ("\u2028", "a control character or line break"),
        ("\u00ad", "an invisible character"),
        ("\u200b", "an invisible character"),
        ("\u202e", "an invisible character"),
        ("\u2060", "an invisible character"),
        ("\u2066", "an invisible character"),
        ("\ufeff", "an invisible character"),
    ],
)
def test_characters_that_no_word_has_are_named(make_subject, letter, what):
    code = f"U\\+{ord(letter):04X}"
    with pytest.raises(
        BindingError, match=rf"the token '<an.*na>' has {what} \({code}\), expected"
    ) as e:
        bind(make_subject(), f"<an{letter}na>")
    assert str(e.value).encode()
    with pytest.raises(BindingError, match=rf"'<x>': the noun 'wo.*n' has {what} \({code}\)"):
        bind(make_subject(), "<x>", f"wo{letter}n")


@pytest.mark.parametrize(
    "word",
    [
        "<anna>",
        "Ænna",
        "安娜",
        "<👩\u200d🚀>",
        "<❤\ufe0f>",
        "می\u200cخواهم",
        "क्\u200dष",
        "<🏴\U000e0067\U000e007f>",
    ],
)
def test_words_of_any_script_and_emoji_can_be_bound(make_subject, word):
    binding = bind(make_subject(), word, word)
    assert (binding.token, binding.noun) == (word, word)


def test_token_and_noun_are_composed(make_subject):
    binding = bind(make_subject(), "<Zoe\u0308>", "cafe\u0301 owner")
    assert (binding.token, binding.noun) == ("<Zo\u00eb>", "caf\u00e9 owner")
    assert binding.id == bind(make_subject(), "<Zo\u00eb>").id


@pytest.mark.parametrize(("words", "limit"), [(("x" * 101, ""), 100), (("<x>", "y" * 201), 200)])
def test_words_have_a_length(make_subject, words, limit):
    with pytest.raises(
        BindingError, match=rf"has {limit + 1} characters, expected at most {limit}"
    ):
        bind(make_subject(), *words)
    assert bind(make_subject(), *(word[:limit] for word in words)) is not None


def test_an_encoders_own_noun_is_checked_too(make_subject):
    subject = replace(make_subject(), noun="wo\u202eman")
    with pytest.raises(
        BindingError, match=r"has an invisible character .* or take another encoder"
    ):
        bind(subject)


def test_the_middle_fidelity_is_exactly_as_set(make_subject):
    default, middle = (
        bind(make_subject(), strength=0.7, token_weight=1.3, **settings)
        for settings in ({}, {"fidelity": 0.5})
    )
    for binding in (default, middle):
        assert (binding.strength, binding.token_weight) == (0.7, 1.3)


def test_no_fidelity_is_the_noun_alone(make_subject):
    binding = bind(make_subject(), strength=1.7, fidelity=0.0)
    assert (binding.strength, binding.token_weight) == (0.0, 1.0)
    assert not binding.has_effect


def test_any_other_fidelity_has_an_effect(make_subject):
    assert bind(make_subject(), fidelity=0.01).has_effect
    assert bind(make_subject(), fidelity=1.0).has_effect


def test_fidelity_scales_what_the_user_set(make_subject):
    balance = balance_at(0.8)
    binding = bind(make_subject(), strength=0.5, token_weight=0.4, fidelity=0.8)
    assert binding.strength == pytest.approx(0.5 * balance.strength)
    assert binding.token_weight == pytest.approx(0.4 * balance.token_weight)


@given(st.floats(0.0, 2.0), st.floats(0.1, 10.0), st.floats(0.0, 1.0))
def test_fidelity_never_leaves_the_ranges_of_the_formula(
    make_subject, strength, token_weight, fidelity
):
    binding = bind(make_subject(), strength=strength, token_weight=token_weight, fidelity=fidelity)
    assert 0.0 <= binding.strength <= 2.0
    assert 0.1 <= binding.token_weight <= 10.0


def test_fidelity_stops_at_the_ends_of_those_ranges(make_subject):
    binding = bind(make_subject(), strength=2.0, token_weight=10.0, fidelity=1.0)
    assert (binding.strength, binding.token_weight) == (2.0, 10.0)


def test_presence_follows_the_schedule_within_the_bindings_part(make_subject):
    binding = bind(make_subject(), start_percent=0.2, end_percent=0.6, schedule="early")
    found = [binding.presence_at(percent) for percent in (0.1, 0.2, 0.4, 0.6, 0.7)]
    assert found == pytest.approx([0.0, 1.0, 0.5, 0.0, 0.0])


def test_without_a_schedule_presence_is_all_or_nothing(make_subject):
    binding = bind(make_subject(), start_percent=0.2, end_percent=0.6)
    assert [binding.presence_at(percent) for percent in (0.19, 0.2, 0.6, 0.61)] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"schedule": "sudden"},
            r"Bind Subject '<anna>': found the schedule 'sudden', expected one of constant, early, "
            r"late, ease\. Choose one",
        ),
        ({"fidelity": 1.5}, "'<anna>': fidelity is 1.5, expected a number from 0 to 1"),
        ({"fidelity": -0.1}, "'<anna>': fidelity is -0.1, expected a number from 0 to 1"),
        ({"fidelity": float("nan")}, "'<anna>': fidelity is nan, expected a number from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make_subject, settings, message):
    with pytest.raises(BindingError, match=message):
        bind(make_subject(), "<anna>", **settings)
