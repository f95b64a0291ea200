"""Why a subject did not act, told from what is known when sampling starts, in sentences for people.

Nothing here looks at a model. It compares words: those that are bound with those that the prompts
say, and finds the likely slip between them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .prompt import token_pattern

# What people write as a token: something in angle brackets, without spaces or a colon; with a colon
# it is another pack's syntax (`<lora:name:1>`).
_BRACKETED = re.compile(r"<[^<>\s:]{1,64}>")
_WORD = re.compile(r"\S+")
_WEIGHT = re.compile(r":[0-9.]+\)*$")  # the end of `(word:1.2)`

# Two words of this likeness (difflib's ratio) differ by a slip: one letter of five. Words without
# brackets are mostly not meant as tokens, so they must come nearer.
_ALIKE, _ALIKE_WORDS = 0.75, 0.87

# The page replaces `{a|b}` by one of the two, and drops what `//` or `/*` begins.
_EATEN_BY_THE_PAGE = ("{", "}", "//", "/*")
_BRACKETS = "<>()[]{}«»‹›＜＞〈〉\"'`“”‘’*_"
_LISTED = 6
_MAX_COMPARED = 4000  # words of the prompts, the first ones: a pasted novel is no slip


@dataclass(frozen=True)
class PromptText:
    """A prompt as a text encoder of ours was given it.

    Attributes:
        text: as the user wrote it, tokens and all.
        node: the node that gave it, as the page calls it; None outside of the page.
        bound: the tokens that this text encoder knew, with their bindings' ids.
        changed: whether a node changed the words between tokenising and encoding.
    """

    text: str
    node: str | None = None
    bound: tuple[tuple[str, int], ...] = ()
    changed: bool = False


def unknown_words(text: str, tokens: Collection[str]) -> list[str]:
    """The `<words>` of a prompt that are no token, each once, in their order."""
    known = {unicodedata.normalize("NFC", token) for token in tokens}
    text = unicodedata.normalize("NFC", text)
    if known:
        text = token_pattern(known).sub(" ", text)
    return list(dict.fromkeys(_BRACKETED.findall(text)))


def most_similar(word: str, candidates: Iterable[str], least: float = _ALIKE) -> str | None:
    """The candidate that was probably meant: the same but for case, brackets or a slip of one letter.

    Args:
        least: likeness that it must have, in [0, 1].
    """
    found, best = None, 0.0
    for each in dict.fromkeys(candidates):
        likeness = _likeness(word, each)
        if likeness >= least and likeness > best:
            found, best = each, likeness
    return found


def _likeness(one: str, other: str) -> float:
    bare, other_bare = _bare(one), _bare(other)
    if not bare or not other_bare:
        return 0.0
    if bare == other_bare:
        return 1.0
    matcher = difflib.SequenceMatcher(None, bare, other_bare)
    # Both bounds are cheap, and nearly every word of a prompt fails them.
    bound = min(matcher.real_quick_ratio(), matcher.quick_ratio())
    return matcher.ratio() if bound >= _ALIKE else 0.0


def _bare(word: str) -> str:
    """Without case, brackets, punctuation around it, and ways of writing one letter."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    folded = _WEIGHT.sub("", folded)
    return folded.strip(_BRACKETS + " .,;:!?/\\|-")


def similar_in(texts: Iterable[str], token: str) -> str | None:
    """What a prompt says in place of a token that it does not contain, if anything comes near."""
    words, bracketed = list[str](), list[str]()
    num_words = max(len(token.split()), 1)
    for text in texts:
        bracketed += _BRACKETED.findall(text)
        single = [each.strip(",.;:!?") for each in _WORD.findall(text)]
        # A slip may put a space into a token (`< anna >`) or be in one that has spaces.
        for length in sorted({num_words + 2, num_words + 1, num_words, 1}, reverse=True):
            words += [" ".join(single[n : n + length]) for n in range(len(single) - length + 1)]
    bracketed, words = (
        [word for word in dict.fromkeys(of) if word != token][:_MAX_COMPARED]
        for of in (bracketed, words)
    )
    return most_similar(token, bracketed) or most_similar(token, words, _ALIKE_WORDS)


def why_not_written(token: str, similar: str | None) -> str:
    """The likely cause where no prompt of a sampling contains a bound token.

    Args:
        similar: what `similar_in` finds in the prompts.
    """
    said = f"no prompt of this sampling says {token}"
    if any(mark in token for mark in _EATEN_BY_THE_PAGE):
        return (
            f"{said}. The page reads {{a|b}} as a choice and // as a comment, so such a token never "
            "arrives: bind one in angle brackets, such as <anna>"
        )
    if similar is not None:
        return f"{said}; one says {similar}. Write {token} there, exactly as it is bound"
    return f"{said}. Write {token} where the subject is to appear"


def unknown_word_sentence(word: str, tokens: Iterable[str]) -> str:
    """What is said of a `<word>` that nobody bound."""
    similar = most_similar(word, tokens)
    if similar is not None:
        return f"the prompt says {word}, which no binding knows. Did you mean {similar}?"
    listed = ", ".join(list(tokens)[:_LISTED])
    return f"the prompt says {word}, which no binding knows (bound are: {listed})."


def acted(token: str, rows: int, steps: Iterable[int], num_steps: int, attention: float) -> str:
    """What is said of a subject that acted.

    Args:
        rows: how many pictures, times their prompts.
        steps: those in which it acted, counted from 0.
        attention: the mean over pixels, heads, layers and steps, in [0, 1].
    """
    times = "1 picture" if rows == 1 else f"{rows} pictures"
    return f"{token} acted: {times}, {_ranges(steps, num_steps)}, {attention:.1%} of attention"


def _ranges(steps: Iterable[int], num_steps: int) -> str:
    ordered = sorted(set(steps))
    runs: list[list[int]] = []
    for each in ordered:
        if runs and each == runs[-1][1] + 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    shown = [f"{a + 1}" if a == b else f"{a + 1}-{b + 1}" for a, b in runs[:_LISTED]]
    more = ", ..." if len(runs) > _LISTED else ""
    noun = "step" if len(ordered) == 1 else "steps"
    return f"{noun} {', '.join(shown)}{more} of {num_steps}"
