"""Errors that a user can cause. A message says where, what was found, what was expected, the remedy."""

from __future__ import annotations

import unicodedata

MAX_MESSAGE_CHARACTERS = 2000
_SHOWN_BEGIN, _SHOWN_END = 1300, 600  # the remedy stands at the end of a message
_SHOWN_VALUE = 80


class NestedAttentionError(ValueError):
    """Base of every error this project raises on purpose.

    Whatever a message quotes, from a file's names to a pasted prompt, it has at most 2,000
    characters and can be written as UTF-8: see `readable`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(readable(message))


class CheckpointError(NestedAttentionError):
    """A file that is not what it was loaded as (corrupt, foreign, of another version or layout), or
    that cannot be written."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that a workflow names and that is in none of the folders."""


class SiteError(NestedAttentionError):
    """A site selector that cannot be read, or that names no attention layer of the model."""


class SubjectError(NestedAttentionError):
    """A photograph, mask or image encoder from which no subject can be made."""


class BindingError(NestedAttentionError):
    """A binding whose token, noun, strength, weight or schedule makes no sense."""


class HostError(NestedAttentionError):
    """A model, text encoder or image encoder that this method cannot be applied to."""


def readable(message: str) -> str:
    """The message as any page, log and terminal takes it; applied twice it changes nothing more.

    Half surrogates, as undecodable file names have them, and control characters other than line
    breaks become escapes. A message of more than `MAX_MESSAGE_CHARACTERS` loses its middle, which
    is where lists stand: it keeps its begin and its remedy, and says how much is missing.
    """
    text = _escaped(message)
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    begin, end = text[:_SHOWN_BEGIN], text[-_SHOWN_END:]
    # Between two entries where there are entries, so that none is cut in two.
    begin, end = begin.rpartition(", ")[0] or begin, end.partition(", ")[2] or end
    left_out = text[len(begin) : -len(end)]
    entries = left_out.count(", ") - 1
    what = f"{entries:,} more entries, " if entries > 0 else ""
    return f"{begin} ... ({what}{len(left_out):,} characters left out) ... {end}"


def shown(value: object, limit: int = _SHOWN_VALUE) -> str:
    """A stranger's value in one line of a message: its begin where it is long, and how long it is."""
    text = (value if isinstance(value, str) else str(value)).replace("\n", "\\n")
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text):,} characters)"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if unicodedata.category(letter) in ("Cc", "Cs") and letter != "\n"
        else letter
        for letter in text
    )
