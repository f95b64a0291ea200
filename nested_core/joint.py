"""The softmax of layers in which text and pixels are keys alike.

A_s(q) is the share of a text token among *all* keys, so the text's logits alone do not give it. It
follows from them and the logarithm of the softmax's denominator, which is one number per query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import Float

# Elements of the largest table of logits held at once, in float32: 128 MB.
_MAX_TABLE_ELEMENTS = 2**25


@dataclass(frozen=True)
class JointSoftmax:
    """A softmax that runs over more keys than the text's, as in layers that join text and image.

    Attributes:
        log_sum_exp: of each pixel's logits over all keys.
        output: of the layer for each pixel, over all keys.
        text_bias: what a mask adds to the logits of the text's keys; None: nothing.
    """

    log_sum_exp: Float[Tensor, "batch heads pixels 1"]
    output: Float[Tensor, "batch heads pixels head_dim"]
    text_bias: Float[Tensor, "#batch #heads #pixels text_tokens"] | None = None


def log_sum_exp(
    query: Float[Tensor, "batch heads pixels head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    bias: Float[Tensor, "#batch #heads #pixels keys"] | None = None,
) -> Float[Tensor, "batch heads pixels 1"]:
    """The logarithm of each query's sum of exponentials over all keys, in float32.

    The full table of attention is never held: queries are taken in runs.

    Args:
        bias: added to the logits.
    """
    batch, heads, num_pixels, head_dim = query.shape
    step = max(1, _MAX_TABLE_ELEMENTS // (batch * heads * key.shape[2]))
    keys = key.float().mT * head_dim**-0.5
    pieces: list[Tensor] = []
    for start in range(0, num_pixels, step):
        pixels = slice(start, start + step)
        logits = query[:, :, pixels].float() @ keys
        if bias is not None:
            logits += bias[:, :, pixels] if bias.shape[2] > 1 else bias
        pieces.append(logits.logsumexp(dim=-1, keepdim=True))
    return torch.cat(pieces, dim=2)
