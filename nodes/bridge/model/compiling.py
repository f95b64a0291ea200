"""Whether a UNet is compiled."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..wrappers import wrappers_of


def is_compiled(base_model: Any, options: Mapping[str, Any]) -> bool:
    """Whether the UNet or a part of it runs as a trace that the compiler made.

    TorchCompileModel exchanges the module in a wrapper around the model (comfy_api/torch_helpers);
    other packs' nodes put a compiled module in the original's place, or compile it in place.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    if any("compile" in str(key) for key in wrappers_of(options, WrappersMP.APPLY_MODEL)):
        return True
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in base_model.diffusion_model.modules()
    )
