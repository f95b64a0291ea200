"""What other packs have put around the UNet and into it, by name, for messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..names import is_foreign, is_hosts, name_of
from ..wrappers import with_wrappers, wrappers_of

FUNCTION_WRAPPER = "model_function_wrapper"  # ComfyUI's name


def names_around(
    base_model: Any, inside: Iterable[Any], options: Mapping[str, Any]
) -> frozenset[str]:
    """The functions that are not ComfyUI's own: wrappers, and forwards that stand in for a class's.

    Args:
        inside: the forwards of what the model is made of.
    """
    functions = _functions(base_model, inside, options)
    return frozenset(name_of(each) for each in functions if is_foreign(each))


def _functions(base_model: Any, inside: Iterable[Any], options: Mapping[str, Any]) -> Iterator[Any]:
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        yield from chain(*wrappers_of(options, kind).values())
    unet = base_model.diffusion_model
    yield from (unet.forward, getattr(unet, "_forward", unet.forward))
    yield from inside


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


def has_strangers(
    options: Mapping[str, Any],
    kinds: Sequence[str] = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL),
) -> bool:
    """Whether another pack's wrappers stand on the way from conditionings to our place before the UNet.

    Args:
        options: ComfyUI's `transformer_options`.
    """
    standing = chain(*(chain(*wrappers_of(options, kind).values()) for kind in kinds))
    return any(map(is_foreign, standing))


def in_front_of_strangers(
    options: Mapping[str, Any], key: str, wrapper: Callable[..., Any]
) -> dict[str, Any]:
    """The options of a sampling with a wrapper before all of other packs' around the model.

    What is registered under the key, which is to see what arrives behind them, comes last.
    """
    if not has_strangers(options, (WrappersMP.APPLY_MODEL,)):
        return dict(options)
    listed = dict(wrappers_of(options, WrappersMP.APPLY_MODEL))
    own = listed.pop(key, [])
    ordered = {f"{key} around": [wrapper], **listed, key: own}
    return with_wrappers(options, WrappersMP.APPLY_MODEL, ordered)
