"""The softmax of layers in which text and pixels are keys alike.

A_s(q) is the share of a text token among *all* keys, so the text's logits alone do not give it. It
follows from them and the logarithm of the softmax's denominator, which is one number per query. That
is also the cheaper way where the text is long and nobody needs the attention to its other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import Float

_aten = torch.ops.aten

# Elements of the largest table of logits held at once, in float32: 128 MB.
_MAX_TABLE_ELEMENTS = 2**25


@dataclass(frozen=True)
class JointSoftmax:
    """A softmax whose denominators are known: of layers that join text and image, or of long texts.

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

    The full table of attention is never held. Attention kernels of PyTorch that return this number
    compute it faster than anything of ours, though they weigh values at the same time.

    Args:
        bias: added to the logits.
    """
    fused = attention_with_log_sum_exp(query, key, key, bias)
    if fused is not None:
        return fused[1]
    return _in_runs(query, key, bias)


def attention_with_log_sum_exp(
    query: Float[Tensor, "batch heads pixels head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    bias: Float[Tensor, "#batch #heads #pixels keys"] | None = None,
) -> (
    tuple[Float[Tensor, "batch heads pixels head_dim"], Float[Tensor, "batch heads pixels 1"]]
    | None
):
    """Attention and, in float32, `log_sum_exp`, from one kernel of PyTorch.

    None where there is none: on other devices, and where gradients are wanted, which these kernels
    do not give to the second.
    """
    tensors = (query, key, value) if bias is None else (query, key, value, bias)
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return None
    out: Tensor
    found: Tensor
    if query.device.type == "cpu":
        bias = None if bias is None else bias.to(query.dtype)
        out, found = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias
        )
    elif query.device.type == "cuda" and _is_for_flash(query, key, value, bias):
        out, found, *_ = _aten._scaled_dot_product_flash_attention(query, key, value)
    else:
        return None
    return out, found.float()[..., None]


def _is_for_flash(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    cuda = torch.backends.cuda
    if query.shape[-1] % 8:  # PyTorch pads these before
        return False
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, bias, 0.0, False, False))


def _in_runs(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
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
