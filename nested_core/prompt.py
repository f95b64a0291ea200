"""Bound tokens in a prompt: found, replaced by their nouns, and marked where those end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .binding import Binding

# Private code points that the prompt does not contain stand for "the noun of binding i ends here"
# while the host parses weights, escapes and embeddings around them.
_FIRST_PRIVATE, _LAST_PRIVATE = 0xF0000, 0xFFFFD


class MarkedToken(int):
    """A token id that remembers its binding; to everybody else it is the plain id."""

    binding_id: int

    def __new__(cls, token_id: int, binding_id: int = 0) -> MarkedToken:
        marked = super().__new__(cls, token_id)
        marked.binding_id = binding_id
        return marked


@dataclass(frozen=True)
class MarkedPrompt:
    """A prompt with nouns in place of tokens.

    Attributes:
        plain: what the text encoder would read without marks.
        marked: the same with one private character behind each noun.
        ends: which binding id each private character stands for.
    """

    plain: str
    marked: str
    ends: Mapping[str, int]


def mark_prompt(text: str, bindings: Sequence[Binding]) -> MarkedPrompt:
    """The prompt with every bound token replaced by its noun.

    Tokens are matched case-sensitively and longest first. A token that begins or ends with a
    letter or digit needs a word boundary there: `anna` is not found in `annabel`.
    """
    if not bindings:
        return MarkedPrompt(text, text, {})
    by_token = {binding.token: binding for binding in bindings}
    pattern = _token_pattern(by_token)
    found = dict.fromkeys(match[0] for match in pattern.finditer(text))
    plain = pattern.sub(lambda match: by_token[match[0]].noun, text)
    symbols = dict(zip(found, _unused_characters(plain), strict=False))
    marked = pattern.sub(lambda match: by_token[match[0]].noun + symbols[match[0]], text)
    return MarkedPrompt(plain, marked, {symbols[token]: by_token[token].id for token in found})


def _token_pattern(tokens: Mapping[str, Binding]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(_bounded(token) for token in longest_first))


def _bounded(token: str) -> str:
    before = r"(?<!\w)" if token[0].isalnum() else ""
    after = r"(?!\w)" if token[-1].isalnum() else ""
    return f"{before}{re.escape(token)}{after}"


def _unused_characters(text: str) -> Iterator[str]:
    used = set(text)
    return (chr(code) for code in range(_FIRST_PRIVATE, _LAST_PRIVATE + 1) if chr(code) not in used)


def mark_tokens(
    word: str,
    ends: Mapping[str, int],
    tokenize: Callable[[str], list[int]],
    token_lengths: Callable[[list[int]], list[int]],
) -> list[int]:
    """Token ids of a piece of prompt, those in which a noun ends marked with its binding.

    Args:
        word: text with private characters.
        tokenize: ids of a plain text, special tokens around them.
        token_lengths: how many characters of the normalised text each id covers, special ones 0.

    A token may reach beyond the noun (`person` in `personally`); the one that holds the noun's last
    character is the one marked. It is found by length: the tokens of the text up to the noun's end
    cover as many characters as the whole text's tokens do up to there.
    """
    pieces = re.split(f"([{''.join(map(re.escape, ends))}])", word) if ends else [word]
    plain = "".join(piece for piece in pieces if piece not in ends)
    ids = tokenize(plain)
    covered = list(accumulate(token_lengths(ids)))
    prefix = ""
    for piece in pieces:
        if piece not in ends:
            prefix += piece
            continue
        length = sum(token_lengths(tokenize(prefix)))
        position = next((i for i, total in enumerate(covered) if total >= length), None)
        if position is not None and length > 0:
            ids[position] = MarkedToken(ids[position], ends[piece])
    return ids
