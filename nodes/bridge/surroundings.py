"""What other packs have put around the UNet and into it, by name, for messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP

_OURS = __name__.rsplit(".", 3)[0]


def name_of(thing: Any) -> str:
    """A function's or an object's name and where it comes from, for people."""
    thing = getattr(thing, "func", thing)  # of a partial
    thing = getattr(thing, "__func__", thing)
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def names_around(
    base_model: Any, blocks: Iterable[Any], options: Mapping[str, Any]
) -> frozenset[str]:
    """The functions that are not ComfyUI's own: wrappers, and forwards that stand in for a class's."""
    found = {name_of(each) for each in _functions(base_model, blocks, options)}
    return frozenset(
        each for each in found if not each.startswith(("comfy.", "comfy_", "torch.", _OURS))
    )


def _functions(base_model: Any, blocks: Iterable[Any], options: Mapping[str, Any]) -> Iterator[Any]:
    wrappers = options.get("wrappers", {})
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        for listed in wrappers.get(kind, {}).values():
            yield from listed
    unet = base_model.diffusion_model
    yield from (unet.forward, getattr(unet, "_forward", unet.forward))
    for block in blocks:
        yield from (block.forward, block.attn2.forward)
