"""Wrappers around the model itself, in ComfyUI's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP


def with_innermost(
    options: dict[str, Any], key: str, wrapper: Callable[..., Any]
) -> dict[str, Any]:
    """A copy of the options whose last wrapper around the UNet is this one."""
    wrappers = options.get("wrappers", {})
    listed = {**wrappers.get(WrappersMP.DIFFUSION_MODEL, {}), key: [wrapper]}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: listed}}


def without_innermost(options: dict[str, Any], key: str) -> dict[str, Any]:
    """The options without it: some are kept."""
    wrappers = options.get("wrappers", {})
    listed = wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
    if key not in listed:
        return options
    listed = {name: each for name, each in listed.items() if name != key}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: listed}}
