"""A call of ComfyUI's attention function, in one form: how models ask it differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....nested_core.attention import merge_heads, split_heads
from ....nested_core.joint import attention_with_log_sum_exp


class Attention(NamedTuple):
    """What ComfyUI's attention function is called with.

    Queries, keys and values are split into heads, `[rows, heads, tokens, head_dim]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    is_output_split: bool

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: torch.dtype | None = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        scale: float | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Attention:
        """From the arguments of a call, which come by position or by name."""
        split = (q, k, v) if skip_reshape else tuple(_of_heads(each, heads) for each in (q, k, v))
        query, key, value = split
        if scale is not None:  # everything else takes the usual one for granted
            query = query * (scale * query.shape[-1] ** 0.5)
        if key.shape[1] < heads:
            key, value = (
                each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value)
            )
        options = transformer_options or {}
        return cls(query, key, value, mask, options, skip_output_reshape)

    @property
    def bias(self) -> Tensor | None:
        """What the mask adds to the logits, `[rows or 1, heads or 1, queries or 1, keys]`."""
        if self.mask is None:
            return None
        mask = self.mask
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
        if mask.ndim == 2:
            return mask[None, None]
        return mask[:, None] if mask.ndim == 3 else mask

    def of_heads(self, output: Tensor) -> Tensor:
        """An output as `[rows, heads, queries, head_dim]`; a view."""
        return output if self.is_output_split else split_heads(output, self.query.shape[1])

    def like_output(self, split: Tensor) -> Tensor:
        """The inverse of `of_heads`."""
        return split if self.is_output_split else merge_heads(split)

    def fused(self) -> tuple[Tensor, Tensor] | None:
        """The output, and the logarithm of each query's softmax's denominator, from one kernel."""
        found = attention_with_log_sum_exp(self.query, self.key, self.value, self.bias)
        return None if found is None else (self.like_output(found[0]), found[1])


def _of_heads(each: Tensor, heads: int) -> Tensor:
    """Split into heads; SD3's values are so already, tokens first."""
    return each.transpose(1, 2) if each.ndim == 4 else split_heads(each, heads)
