"""Decoupled cross-attention, IP-Adapter's way of showing a subject (arXiv:2308.06721), to compare with.

    out = softmax(q K^T / sqrt(d)) V + scale softmax(q Kn^T / sqrt(d)) Vn

The image has an attention of its own, beside the one to the text and added to it everywhere. The
formula only stands here: the pack does not offer it.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.modules.attention
from torch import Tensor

from nested_core.attention import merge_heads, nested_values, split_heads


def image_attention(query: Tensor, image_key: Tensor, image_value: Tensor) -> Tensor:
    """The second term at scale 1.

    Args:
        query: `[batch, heads, pixels, head_dim]`, as the result.
        image_key, image_value: `[batch, subject_tokens, inner]`.
    """
    heads = query.shape[1]
    key, value = (split_heads(tensor.to(query), heads) for tensor in (image_key, image_value))
    return nested_values(query, key, value)


def with_decoupled_subjects(model: Any, encoder: Any, tokens: Tensor, scale: float) -> Any:
    """A clone of MODEL in which each row of a batch sees its subject.

    Args:
        tokens: the subjects' tokens, `[rows, subject_tokens, text_dim]`.
    """
    clone = model.clone()
    for site in encoder.site_dims:
        key, value = encoder.project(site, tokens)
        clone.set_model_attn2_replace(DecoupledSite(key, value, scale), *site)
    return clone


class DecoupledSite:
    """ComfyUI's replace-patch of one site. Unconditional rows are the host's."""

    def __init__(self, key: Tensor, value: Tensor, scale: float) -> None:
        self.key, self.value, self.scale = key, value, scale

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> Tensor:
        heads = options["n_heads"]
        out = comfy.ldm.modules.attention.optimized_attention(
            query,
            key,
            value,
            heads,
            attn_precision=options["attn_precision"],
            transformer_options=options,
        )
        kinds = options["cond_or_uncond"]
        rows = len(query) // len(kinds)
        for number, kind in enumerate(kinds):
            if kind == 0:  # conditional
                part = slice(number * rows, (number + 1) * rows)
                image = image_attention(split_heads(query[part], heads), self.key, self.value)
                out[part] += self.scale * merge_heads(image)
        return out
