"""What may stand as a word in a prompt: tokens and nouns, typed by users or read from files."""

from __future__ import annotations

import re
import unicodedata

MAX_TOKEN_CHARACTERS = 100
MAX_NOUN_CHARACTERS = 200  # a text encoder reads 75 tokens at a time

# Nobody sees these, so a word with one looks like the word without it and is never found: soft
# hyphen, marks and overrides of direction, Mongolian vowel separator, zero-width space, word joiner
# and invisible operators, byte order mark, annotations. The joiners U+200C and U+200D are not among
# them: several scripts and many emoji are spelled with them.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
# Letters and signs by their category, but drawn as nothing.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_UNSEEN_CATEGORIES = ("Z", "C", "M")


def composed(text: str) -> str:
    """The text in Unicode's form NFC, in which equal words have equal characters."""
    return unicodedata.normalize("NFC", text)


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen: empty, white space of any script, joiners alone."""
    return all(letter in _BLANK or _is_unseen(letter) for letter in text)


def word_problem(text: str, max_characters: int) -> str | None:
    """What keeps a text from being a word of a prompt, beginning with `has`; None where nothing does.

    Refused are characters that no encoding holds, that a prompt field cannot hold in one line, or
    that nobody sees, and texts too long to be a word.
    """
    if is_blank(text):
        return "has nothing that can be seen, expected plain words"
    if len(text) > max_characters:
        return f"has {len(text):,} characters, expected at most {max_characters}"
    for letter in text:
        kind = _kind(letter)
        if kind is not None:
            return f"has {kind} (U+{ord(letter):04X}), expected plain words"
    return None


def _kind(letter: str) -> str | None:
    category = unicodedata.category(letter)
    if category == "Cs":
        return "half of a surrogate pair"
    if category in ("Cc", "Zl", "Zp"):
        return "a control character or line break"
    return "an invisible character" if _INVISIBLE.match(letter) else None


def _is_unseen(letter: str) -> bool:
    category = unicodedata.category(letter)
    # Private and yet unassigned characters may be drawn by somebody's font.
    return category[0] in _UNSEEN_CATEGORIES and category not in ("Co", "Cn")
