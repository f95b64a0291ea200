"""Tokens in a prompt become nouns, and the end of each noun is remembered."""

from __future__ import annotations

import copy
import json
import pickle
import re
import unicodedata
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nested_core.binding import Binding, bind
from nested_core.errors import BindingError
from nested_core.prompt import MarkedToken, mark_prompt, mark_tokens
from nested_core.words import composed

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


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a <Zoe\u0308>", "a girl"),
        ("a <Zo\u00eb>", "a girl"),
        ("cafe\u0301 <Zoe\u0308> cafe\u0301", "cafe\u0301 girl cafe\u0301"),  # the rest as written
        ("cafe\u0301 <Zo\u00eb> caf\u00e9", "cafe\u0301 girl caf\u00e9"),
        (
            "\u1112\u1161\u11ab \u1100\u1161",
            "\u1112\u1161\u11ab dog",
        ),  # a syllable in three letters
        ("sks\u030c sks \u00e9sks e\u0301sks", "sks\u030c cat \u00e9sks e\u0301sks"),
        ("e\u0301 x\u030c sks\u0301", "e\u0301 x\u030c sks\u0301"),
        ("q\u0307\u0323<Zoe\u0308>\u0323\u0307 \u212b", "q\u0307\u0323girl\u0323\u0307 \u212b"),
        ("\u0344<Zoe\u0308> \u0f71\u0f72\u0f73", "\u0344girl \u0f71\u0f72\u0f73"),
    ],
)
def test_a_token_is_found_however_the_prompt_spells_its_accents(bindings_of, text, plain):
    nouns = {"<Zoe\u0308>": "girl", "\uac00": "dog", "sks": "cat"}
    prompt = mark_prompt(text, bindings_of(nouns))
    assert prompt.plain == plain
    assert "".join(letter for letter in prompt.marked if letter not in prompt.ends) == plain


@given(
    st.lists(
        st.sampled_from(
            ["<Zoe\u0308>", "sks", "e\u0301", "e", "\u0301", "\u0323", " ", "\u1100", "\u1161"]
        )
    ),
    st.sampled_from(["NFC", "NFD", "NFKD"]),
)
def test_equal_prompts_bind_alike_and_give_equal_texts(bindings_of, parts, form):
    bindings = bindings_of({"<Zoe\u0308>": "girl", "sks": "cat"})
    text = "".join(parts)
    one, other = (mark_prompt(each, bindings) for each in (text, unicodedata.normalize(form, text)))
    assert one.ends == other.ends
    for found in ("plain", "marked"):
        assert composed(getattr(one, found)) == composed(getattr(other, found))
    if not one.ends:
        assert one.plain == text


def test_there_is_a_mark_for_a_token_in_any_prompt_but_one_of_every_private_character(bindings_of):
    nearly_all = "".join(map(chr, (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFD))))
    (binding,) = bindings_of({"<anna>": "woman"})
    assert mark_prompt(f"<anna>{nearly_all}", [binding]).ends == {"\U0010fffd": binding.id}
    with pytest.raises(BindingError, match=r"no private character is left .* out of the prompt"):
        mark_prompt(f"<anna>{nearly_all}\U0010fffd", [binding])


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


def _marked_as_defined(word: str, ends: dict[str, int], tokenize, lengths) -> list[int]:
    """The definition, which reads the whole prompt up to each mark."""
    ids = tokenize("".join(letter for letter in word if letter not in ends))
    covered = list(accumulate(lengths(ids)))
    for i, letter in enumerate(word):
        before = "".join(each for each in word[:i] if each not in ends)
        length = sum(lengths(tokenize(before)))
        position = next((n for n, total in enumerate(covered) if total >= length), None)
        if letter in ends and position is not None and length > 0:
            ids[position] = MarkedToken(ids[position], ends[letter])
    return ids


class _Pieces:
    """A tokeniser that keeps its pieces: an id is a place in `known`."""

    def __init__(self, split) -> None:
        self._split, self._known = split, ["<start>", "<end>"]
        self.characters = self.calls = 0

    def __call__(self, text: str) -> list[int]:
        self.characters += len(text)
        self.calls += 1
        pieces = self._split(text)
        self._known += [piece for piece in dict.fromkeys(pieces) if piece not in self._known]
        return [0, *map(self._known.index, pieces), 1]

    def lengths(self, ids: list[int]) -> list[int]:
        return [len(self._known[each]) if each > 1 else 0 for each in ids]


def _words(text: str) -> list[str]:
    return [part for word in text.lower().split() for part in re.findall(".{1,3}", word)]


def _control_words(text: str) -> list[str]:
    """A control word such as CLIP's is one piece of length 0, as special tokens are."""
    parts = re.split(r"(<end>)", unicodedata.normalize("NFC", text))
    return [p for part in parts for p in (["<end>"] if part == "<end>" else _words(part))]


def _with_spaces(text: str) -> list[str]:
    """As SentencePiece: a space in front, runs of spaces one, each space part of a piece."""
    spaced = re.sub(r"\s+", "\u2581", f" {text.strip()}") if text.strip() else ""
    return re.findall("\u2581?[^\u2581]{1,4}|\u2581", spaced)


def _bytes(text: str) -> list[str]:
    """As byte-level pairs: a space belongs to the word behind it, letters become bytes."""
    return [
        piece.encode().decode("latin-1") for piece in re.findall(r" ?\w{1,3}| ?[^\s\w]|\s+", text)
    ]


PARTS = ["a", "Ab", "\u00e9", "e\u0301", " ", "   ", "<end>", ",", "woman|", "|", "!"]
TEXTS = st.one_of(*(st.lists(st.sampled_from(PARTS), min_size=n, max_size=n + 20) for n in (0, 80)))


@pytest.mark.parametrize("split", [_words, _control_words, _with_spaces, _bytes])
@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_marks_of_any_tokeniser_are_where_the_definition_has_them(split, parts):
    word, ends = "".join(parts), {"|": 7, "!": 8}
    tokenize = _Pieces(split)
    marked, defined = (
        mark(word, ends, tokenize, tokenize.lengths) for mark in (mark_tokens, _marked_as_defined)
    )
    assert marked == defined
    assert [getattr(each, "binding_id", 0) for each in marked] == [
        getattr(each, "binding_id", 0) for each in defined
    ]


@pytest.mark.parametrize("piece", ["woman| ", "a|", f"{'x' * 300}| "])
def test_marking_costs_as_many_characters_for_each_mark_however_many_there_are(piece):
    def characters(num_marks: int) -> int:
        tokenize = _Pieces(_words)
        mark_tokens(piece * num_marks, {"|": 7}, tokenize, tokenize.lengths)
        assert tokenize.calls <= 2 * num_marks + 1
        return tokenize.characters

    assert characters(800) < 800 * (200 + 3 * len(piece))
    assert characters(800) < 5 * characters(200)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda token: pickle.loads(pickle.dumps(token))]
)
def test_a_marked_token_is_its_plain_id_to_everybody_else(copied):
    token = copied(MarkedToken(320, 5))
    assert isinstance(token, int)
    assert (token, hash(token), f"{token}") == (320, hash(320), "320")
    assert json.dumps([token]) == "[320]"
    assert token.binding_id == 5
