"""Wrappers around the model and its UNet, in ComfyUI's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from comfy.patcher_extension import WrappersMP

Wrapper: TypeAlias = Callable[..., Any]


def wrappers_of(options: Mapping[str, Any], kind: str) -> dict[str, list[Wrapper]]:
    """The wrappers of a kind, by key, the outermost first."""
    return options.get("wrappers", {}).get(kind, {})


def with_wrappers(
    options: Mapping[str, Any], kind: str, wrappers: Mapping[str, list[Wrapper]]
) -> dict[str, Any]:
    """A copy of the options with these wrappers of a kind alone."""
    return {**options, "wrappers": {**options.get("wrappers", {}), kind: wrappers}}


def with_innermost(options: dict[str, Any], key: str, wrapper: Wrapper) -> dict[str, Any]:
    """A copy of the options whose last wrapper around the UNet is this one."""
    wrappers = wrappers_of(options, WrappersMP.DIFFUSION_MODEL)
    return with_wrappers(options, WrappersMP.DIFFUSION_MODEL, {**wrappers, key: [wrapper]})


def without_innermost(options: dict[str, Any], key: str) -> dict[str, Any]:
    """The options without it: some are kept."""
    wrappers = dict(wrappers_of(options, WrappersMP.DIFFUSION_MODEL))
    if wrappers.pop(key, None) is None:
        return options
    return with_wrappers(options, WrappersMP.DIFFUSION_MODEL, wrappers)
