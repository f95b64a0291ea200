"""Precisions that weights may have, by the names of the safetensors format."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtype_name(tensor: Tensor) -> str:
    """The format's name of a tensor's precision; torch's name where weights may not have it."""
    names = {dtype: name for name, dtype in WEIGHT_DTYPES.items()}
    return names.get(tensor.dtype, str(tensor.dtype))
