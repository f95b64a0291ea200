"""Windows: the UNet is run on some pictures of a batch, or on some rows of their latents.

ComfyUI's context windows, and those of AnimateDiff-Evolved, say which in the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....nested_core.call.places import PICTURES, Window


def told_window(model_options: Mapping[str, Any]) -> Window | None:
    """The window of a call, as the options tell it; None where they say nothing of one."""
    options = model_options.get("transformer_options", {})
    return _core_window(options, model_options) or _animatediff_window(options)


def _core_window(options: Mapping[str, Any], model_options: Mapping[str, Any]) -> Window | None:
    """Of ComfyUI's context windows (comfy/context_windows.py, IndexListContextWindow)."""
    window = options.get("context_window")
    indices = getattr(window, "index_list", None)
    if not indices:
        return None
    indices = [int(each) for each in indices]
    anchor = getattr(window, "causal_anchor_index", None)
    if anchor is not None and anchor >= 0:
        indices.insert(0, int(anchor))
    # Pictures that stay in every window, at their own place.
    handler = model_options.get("context_handler")
    for each in getattr(handler, "latent_retain_index_list", ()) or ():
        if 0 <= int(each) < len(indices):
            indices[int(each)] = int(each)
    total = int(getattr(window, "total_frames", 0) or 0)
    return int(getattr(window, "dim", 0)), tuple(indices), max(total, max(indices) + 1)


def _animatediff_window(options: Mapping[str, Any]) -> Window | None:
    """Of AnimateDiff-Evolved, which exposes the pictures of its window (sampling.py, `sub_idxs`)."""
    exposed = options.get("ad_params")
    indices = exposed.get("sub_idxs") if isinstance(exposed, Mapping) else None
    if not indices:
        return None
    indices = tuple(int(each) for each in indices)
    return PICTURES, indices, max(indices) + 1
