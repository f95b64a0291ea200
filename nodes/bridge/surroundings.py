"""What other packs have put around the UNet and into it, by name, for messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

FUNCTION_WRAPPER = "model_function_wrapper"  # ComfyUI's name
_OURS = __name__.rsplit(".", 3)[0]


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


def function_around(
    model: Any, model_options: Mapping[str, Any]
) -> tuple[Callable[..., Tensor] | None, str]:
    """The function that another pack put in front of the UNet, and its name."""
    around = model_options.get(FUNCTION_WRAPPER)
    if around is not None:
        return around, name_of(around)
    return (None if is_hosts(model.apply_model) else _straight), name_of(model.apply_model)


def _straight(apply_model: Callable[..., Tensor], arguments: Mapping[str, Any]) -> Tensor:
    return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])


def has_strangers(model_options: Mapping[str, Any], own_key: str) -> bool:
    """Whether another pack's wrappers stand on the way from here to our place before the UNet."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    kinds = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)
    return any(
        key != own_key and listed
        for kind in kinds
        for key, listed in wrappers.get(kind, {}).items()
    )
