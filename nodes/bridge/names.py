"""Whose a function is: ComfyUI's, ours or another pack's, and how it is called in messages."""

from __future__ import annotations

from typing import Any

_OURS = __name__.rsplit(".nodes.", 1)[0]


def name_of(thing: Any) -> str:
    """A function's or an object's name and where it comes from, for people."""
    thing = getattr(thing, "func", thing)  # of a partial
    thing = getattr(thing, "__func__", thing)
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def is_hosts(function: Any) -> bool:
    """Whether a function is ComfyUI's own."""
    return name_of(function).startswith("comfy.")


def is_foreign(function: Any) -> bool:
    """Whether a function is another pack's: not ComfyUI's, not ours."""
    return not name_of(function).startswith(("comfy.", "comfy_", "torch.", _OURS))
