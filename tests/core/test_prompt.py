"""Tokens in a prompt become nouns, and the end of each noun is remembered."""

from __future__ import annotations

import copy
import json
import pickle
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nested_core.binding import Binding, bind
from nested_core.prompt import MarkedToken, mark_prompt, mark_tokens

PRIVATE = "\U000f0000"


@pytest.fixture(scope="session")
def bindings_of(make_subject):
    """`bindings_of({token: noun})`."""
    subject = make_subject()

    def make(nouns: dict[str, str]) -> list[Binding]:
        return [bind(subject, token, noun) for token, noun in nouns.items()]

    return make


def _replaced(text: str, nouns: dict[str, str]) -> tuple[str, list[str]]:
    """The rule, letter by letter: the noun prompt, and the tokens found from left to right."""
    plain, found, start = "", [], 0
    while start < len(text):
        token = next((t for t in _longest_first(nouns) if _stands_at(text, start, t)), None)
        plain += text[start] if token is None else nouns[token]
        found += [] if token is None else [token]
        start += 1 if token is None else len(token)
    return plain, found


def _longest_first(nouns: dict[str, str]) -> list[str]:
    return sorted(nouns, key=len, reverse=True)


def _stands_at(text: str, start: int, token: str) -> bool:
    before, after = text[:start][-1:], text[start + len(token) :][:1]
    glued = (token[0].isalnum() and _in_word(before)) or (token[-1].isalnum() and _in_word(after))
    return text.startswith(token, start) and not glued


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("a photo", "a photo"),
        ("<anna>", "woman"),
        ("a <anna>, smiling", "a woman, smiling"),
        ("<anna><anna>", "womanwoman"),
        ("<Anna> <ANNA>", "<Anna> <ANNA>"),
        ("(<anna>:1.3) \\(<anna>\\)", "(woman:1.3) \\(woman\\)"),
        ("sks sksa asks sks2 sks_ _sks sks. sks's", "dog sksa asks sks2 sks_ _sks dog. dog's"),
        ("sks-2 (sks) ésks skß", "dog-2 (dog) ésks skß"),
        ("sks toy, sks toys", "black cat, dog toys"),
        ("@a @ab @abc @a, @ab's", "x y @abc x, y's"),
        ("1.50$x 1x50$ a1.50$", "coinx 1x50$ a1.50$"),
        ("<<anna>>", "<woman>"),
    ],
)
def test_tokens_become_nouns(bindings_of, text, plain):
    # A token that ends with a sign ends anywhere; one that ends with a letter, only with the word.
    nouns = {"<anna>": "woman", "sks": "dog", "sks toy": "black cat", "@a": "x", "@ab": "y"}
    nouns["1.50$"] = "coin"
    assert mark_prompt(text, bindings_of(nouns)).plain == plain


def test_a_noun_is_not_searched_for_tokens(bindings_of):
    nouns = {"<anna>": "<rex> owner", "<rex>": "<anna> dog"}
    assert mark_prompt("<anna> <rex>", bindings_of(nouns)).plain == "<rex> owner <anna> dog"


def test_a_prompt_without_bindings_stays_as_it_is():
    assert mark_prompt(f"<anna> {PRIVATE}", []).marked == f"<anna> {PRIVATE}"


def test_a_noun_may_contain_the_private_character_that_would_mark_it(bindings_of):
    (binding,) = bindings_of({"<anna>": f"wo{PRIVATE}man"})
    prompt = mark_prompt("a <anna> here", [binding])
    assert prompt.plain == f"a wo{PRIVATE}man here"
    (mark,) = prompt.ends
    assert prompt.marked == f"a wo{PRIVATE}man{mark} here"
    assert mark != PRIVATE


TOKENS = st.text("<>ab.é_ 1", min_size=1, max_size=4).map(str.strip).filter(bool)
NOUNS = st.text(f"xy a<>{PRIVATE}", min_size=1, max_size=5).map(str.strip).filter(bool)
FILLING = st.text(f"<>abé_ 1.,'(){PRIVATE}\U000f0001\n", max_size=4)


@given(
    nouns=st.dictionaries(TOKENS, NOUNS, min_size=1, max_size=4),
    data=st.data(),
)
def test_any_prompt_is_the_longest_first_replacement_with_a_mark_behind_each_noun(
    bindings_of, nouns, data
):
    pieces = st.lists(st.one_of(st.sampled_from(sorted(nouns)), FILLING), max_size=8)
    text = "".join(data.draw(pieces))
    bindings = bindings_of(nouns)
    prompt = mark_prompt(text, bindings)

    plain, found = _replaced(text, nouns)
    assert prompt.plain == plain
    ids = {binding.token: binding.id for binding in bindings}
    assert sorted(prompt.ends.values()) == sorted({ids[token] for token in found})
    marks = "".join(map(re.escape, prompt.ends))
    *nouned, rest = re.split(f"([{marks}])", prompt.marked) if marks else [prompt.marked]
    assert "".join(nouned[::2]) + rest == plain
    assert [prompt.ends[mark] for mark in nouned[1::2]] == [ids[token] for token in found]
    assert all(
        piece.endswith(nouns[token]) for piece, token in zip(nouned[::2], found, strict=True)
    )


# A tokenizer in small: special ones around, words chopped in threes, spaces dropped.
_VOCABULARY: list[str] = ["<start>", "<end>"]
_SPECIAL = 2


def _tokenize(text: str) -> list[int]:
    pieces = [part for word in text.split() for part in re.findall(".{1,3}", word.lower())]
    _VOCABULARY.extend(piece for piece in dict.fromkeys(pieces) if piece not in _VOCABULARY)
    return [0, *map(_VOCABULARY.index, pieces), 1]


def _lengths(ids: list[int]) -> list[int]:
    return [len(_VOCABULARY[each]) if each >= _SPECIAL else 0 for each in ids]


def _marked_positions(word: str, ends: dict[str, int]) -> dict[int, int]:
    ids = mark_tokens(word, ends, _tokenize, _lengths)
    plain = "".join(character for character in word if character not in ends)
    assert ids == _tokenize(plain)
    return {i: each.binding_id for i, each in enumerate(ids) if isinstance(each, MarkedToken)}


@pytest.mark.parametrize(
    ("word", "positions"),
    [
        ("", {}),
        ("abc def", {}),
        ("ab|", {1: 7}),
        ("ab|, xy", {1: 7}),
        ("abcd|", {2: 7}),
        ("abcd|, xy", {2: 7}),
        ("ab|cdef", {1: 7}),  # the noun's last letter lies in the first piece, "abc"
        ("abcd|ef", {2: 7}),
        ("x black dog| y", {4: 7}),
        ("ab| ab! ab|", {1: 7, 2: 8, 3: 7}),
        ("a|b!", {1: 8}),  # one piece holds the ends of both; the later one stands
        ("  ab|", {1: 7}),
    ],
)
def test_the_token_with_the_nouns_last_letter_is_marked(word, positions):
    assert _marked_positions(word, {"|": 7, "!": 8}) == positions


@given(st.text("abcdef |", max_size=24))
@example("|ab")
def test_any_mark_is_on_the_token_that_holds_the_letter_before_it(word):
    owner, owners = 0, []  # of every letter of the plain word: the token that holds it
    for letters in "".join(word.split("|")).split():
        owners += [owner + 1 + i // 3 for i in range(len(letters))]
        owner = owners[-1]
    letters_before = [len(word[:i].replace("|", "").replace(" ", "")) for i in _places(word)]
    expected = {owners[count - 1]: 7 for count in letters_before if count}
    assert _marked_positions(word, {"|": 7}) == expected


def _places(word: str) -> list[int]:
    return [i for i, character in enumerate(word) if character == "|"]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda token: pickle.loads(pickle.dumps(token))]
)
def test_a_marked_token_is_its_plain_id_to_everybody_else(copied):
    token = copied(MarkedToken(320, 5))
    assert isinstance(token, int)
    assert (token, hash(token), f"{token}") == (320, hash(320), "320")
    assert json.dumps([token]) == "[320]"
    assert token.binding_id == 5
