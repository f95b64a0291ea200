"""Bound tokens in a prompt: found, replaced by their nouns, and marked where those end."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from .binding import Binding
from .errors import BindingError
from .words import composed

# Private code points that the prompt does not contain stand for "the noun of binding i ends here"
# while the host parses weights, escapes and embeddings around them.
_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

# Tokenisers join a letter with its marks, and read control words such as <|endoftext|>: how many
# characters a text has in their eyes depends on what stands a few characters before, not further.
_CONTEXT_CHARACTERS = 64


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

    Tokens are matched case-sensitively, longest first and in Unicode's form NFC. A token that begins
    or ends with a letter or digit needs a word boundary there: `anna` is not found in `annabel`.

    Raises:
        BindingError: the prompt holds nearly every private character there is, and none is left to
            mark a noun with.
    """
    if not bindings:
        return MarkedPrompt(text, text, {})
    by_token = {binding.token: binding for binding in bindings}
    pieces = _pieces(text, token_pattern(by_token))
    tokens = dict.fromkeys(pieces[1::2])
    nouns = {token: by_token[token].noun for token in tokens}
    plain = _with_nouns(pieces, nouns)
    symbols = dict(zip(tokens, _unused_characters(plain, len(tokens)), strict=True))
    marked = _with_nouns(pieces, {token: nouns[token] + symbols[token] for token in tokens})
    return MarkedPrompt(plain, marked, {symbols[token]: by_token[token].id for token in tokens})


def _with_nouns(pieces: Sequence[str], nouns: Mapping[str, str]) -> str:
    return "".join(nouns[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _pieces(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The text in pieces, every second one a match of the pattern, which is in Unicode's form NFC.

    Tokens are found in the composed text, so that it makes no difference how a prompt spells an
    accent. What stands between them stays as it was written: to the text encoder it may matter.
    """
    prompt = _Composition(text)
    pieces: list[str] = []
    start = 0
    for match in pattern.finditer(prompt.text):
        pieces += [prompt.written(start, match.start()), match[0]]
        start = match.end()
    return [*pieces, prompt.written(start, len(prompt.text))]


class _Composition:
    """A text in NFC that remembers how each part of it was written."""

    def __init__(self, text: str) -> None:
        is_composed = unicodedata.is_normalized("NFC", text)
        self._segments = [(text, text)] if is_composed else list(_segments(text))
        self.text = "".join(segment for _, segment in self._segments)
        if self.text != composed(text):
            # No letter is known to do this; all of it is then one segment.
            self._segments, self.text = [(text, composed(text))], composed(text)
        self._starts = list(accumulate((len(each) for _, each in self._segments), initial=0))

    def written(self, start: int, stop: int) -> str:
        """What was written from one place of the composed text to another.

        A letter that is cut in two, between it and an accent that has no letter with it, is composed.
        """
        parts: list[str] = []
        for i in range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop)):
            written, segment = self._segments[i]
            first, last = max(start - self._starts[i], 0), min(stop, self._starts[i + 1])
            part = segment[first : last - self._starts[i]]
            parts.append(written if part == segment else part)
        return "".join(parts)


def _segments(text: str) -> Iterator[tuple[str, str]]:
    """Pieces of a text, as written and composed, that no composition joins: letters with accents."""
    segment = ""
    for letter in text:
        is_start = unicodedata.combining(letter) == 0
        # Some letters that start a piece also end one: those of a Korean syllable.
        if (
            segment
            and is_start
            and composed(segment + letter) == composed(segment) + composed(letter)
        ):
            yield segment, composed(segment)
            segment = ""
        segment += letter
    yield segment, composed(segment)


def token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds tokens in a text: the longest where several begin, each as a whole word."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(_bounded(token) for token in longest_first))


def _bounded(token: str) -> str:
    before = r"(?<!\w)" if token[0].isalnum() else ""
    after = r"(?!\w)" if token[-1].isalnum() else ""
    return f"{before}{re.escape(token)}{after}"


def _unused_characters(text: str, count: int) -> list[str]:
    used = set(text)
    letters = (chr(code) for codes in _PRIVATE for code in codes)
    unused = list(islice((letter for letter in letters if letter not in used), count))
    if len(unused) < count:
        raise BindingError(
            f"Apply Nested Attention: the prompt has {count:,} different bound tokens and {len(used):,} "
            "different characters, so that no private character is left to mark the tokens with. Take "
            "private characters (U+F0000 and above) out of the prompt."
        )
    return unused


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
    plain = "".join(pieces[::2])
    ids = tokenize(plain)
    covered = list(accumulate(token_lengths(ids)))
    stops = list(accumulate(map(len, pieces[:-1:2])))
    lengths = _lengths_up_to(stops, plain, lambda text: sum(token_lengths(tokenize(text))))
    for symbol, length in zip(pieces[1::2], lengths, strict=True):
        position = bisect_left(covered, length)
        if 0 < length and position < len(ids):
            ids[position] = MarkedToken(ids[position], ends[symbol])
    return ids


def _lengths_up_to(stops: Sequence[int], text: str, length: Callable[[str], int]) -> Iterator[int]:
    """`length(text[:stop])` for each stop, at a cost that grows with the text and not its square.

    `length` says how many characters a tokeniser sees. That a text grows by as many as it grows behind
    its last `_CONTEXT_CHARACTERS` alone holds for every tokeniser whose normalisation is local:
    whatever it adds or strips at a text's begin is in both and cancels. A short text is read whole.
    """
    start, length_before = 0, 0
    total = 0
    for previous, stop in zip((0, *stops), stops, strict=False):
        if previous - start > 2 * _CONTEXT_CHARACTERS:
            start = previous - _CONTEXT_CHARACTERS
            length_before = total - length(text[start:previous])
        total = length_before + length(text[start:stop])
        yield total
