"""JSON of strangers, read at a cost that its length bounds.

Python's parser turns three bytes into an object of a hundred, takes numbers of any length and
lets the last of two equal names win. So the text is measured before anything is built from it.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

_MAX_NUMBER_CHARACTERS = 40  # the longest float64 has 24
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (_MAX_NUMBER_CHARACTERS + 1))
_STRING = re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: str | bytes, max_bytes: int, max_values: int, max_depth: int) -> Any:
    """The value of a JSON text.

    Args:
        max_values: of all kinds together, an object's names not counted.
        max_depth: of arrays and objects inside each other.

    Raises:
        ValueError: no JSON, beyond a limit, a name twice in one object, or text with half a
            surrogate pair, which no file name and no page can hold.
    """
    encoded = text if isinstance(text, bytes) else text.encode("utf-8")
    if len(encoded) > max_bytes:
        raise ValueError(f"{len(encoded):,} bytes, at most {max_bytes:,} are read")
    _check_structure(encoded, max_values, max_depth)
    try:
        value: Any = json.loads(encoded.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("arrays or objects nested too deep") from error
    _check_text(value)
    return value


def _check_structure(encoded: bytes, max_values: int, max_depth: int) -> None:
    # Pairs from the left, so that a quote behind two backslashes still ends its string.
    plain = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * max_values:
        raise ValueError(f"more than {2 * max_values:,} texts")
    structure = _STRING.sub(b"", plain)
    num_values = sum(map(structure.count, (b",", b"[", b"{")))
    if num_values > max_values:
        raise ValueError(f"more than {max_values:,} values")
    brackets = structure.translate(None, _NO_BRACKETS)
    depth = max(accumulate(1 if each in b"[{" else -1 for each in brackets), default=0)
    if depth > max_depth:
        raise ValueError(f"arrays or objects {depth:,} deep, at most {max_depth} are read")
    if _LONG_NUMBER.search(structure):
        raise ValueError(f"a number of more than {_MAX_NUMBER_CHARACTERS} characters")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _check_text(value: Any) -> None:
    """Raises UnicodeEncodeError, a ValueError, where an escape stands for half a surrogate pair."""
    json.dumps(value, ensure_ascii=False).encode("utf-8")
