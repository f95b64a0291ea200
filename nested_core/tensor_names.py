"""Names of tensors in anybody's files."""

from __future__ import annotations

import re
from collections.abc import Sequence

KEY_WORDS = {"k", "key", "keys", "wk"}
VALUE_WORDS = {"v", "value", "values", "wv"}
# What wrappers of torch put into the middle of a parameter's name.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def plain(key: str) -> str:
    """The key without wrappers' words, its parts joined by dots."""
    return ".".join(part for part in re.split("[./]", key) if part not in _WRAPPERS)


def projection_of(key: str, shape: Sequence[int]) -> str | None:
    """`to_k` or `to_v` where a key is a projection to keys or values, else None."""
    if len(shape) != 2 or "lora" in re.split("[._]", plain(key).lower()):
        return None
    for part in reversed(plain(key).lower().split(".")):
        words = set(re.split("[_-]", part))
        is_key, is_value = bool(words & KEY_WORDS), bool(words & VALUE_WORDS)
        if is_key != is_value:
            return "to_k" if is_key else "to_v"
        if is_key:
            return None
    return None
