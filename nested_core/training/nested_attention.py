"""Nested attention while training: what a base model's cross-attention layers add for the subjects.

`NestedSubjects` goes for every base model; the processors put it into a UNet of diffusers. Nothing
here imports diffusers; its `Attention` modules are used by their attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..attention import (
    BoundToken,
    ValueNorm,
    merge_heads,
    nested_values,
    replacement_delta,
    split_heads,
)
from ..shapes import Float, Int
from ..sites import Site

KeysValues = dict[str, tuple[Tensor, Tensor]]  # by the site's path
SUBJECTS_KEY = "nested_subjects"  # of `cross_attention_kwargs`, and so a processor's argument


@dataclass(frozen=True, eq=False)
class NestedSubjects:
    """One subject for every row of a batch, bound to one token of that row's caption."""

    keys_values: Mapping[str, tuple[Tensor, Tensor]]
    positions: Int[Tensor, " batch"]
    value_norm: ValueNorm

    def delta(
        self,
        site: Site,
        query: Float[Tensor, "batch heads pixels head_dim"],
        text_key: Float[Tensor, "batch heads text_tokens head_dim"],
        text_value: Float[Tensor, "batch heads text_tokens head_dim"],
    ) -> Float[Tensor, "batch heads pixels head_dim"]:
        """What the subjects add to the output of this cross-attention layer, in float32."""
        key, value = (
            split_heads(each.to(query.dtype), query.shape[1])
            for each in self.keys_values[site.path]
        )
        values = nested_values(query, key, value)
        token = BoundToken(self.positions, values, self.value_norm)
        return replacement_delta(query, text_key, text_value, [token])


class CrossAttentionProcessor:
    """Cross-attention of one site; the subjects come with the call, so recomputing it is the same."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        nested_subjects: NestedSubjects | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads: int = attention.heads
        query = split_heads(attention.to_q(hidden_states), heads)
        key, value = (
            split_heads(project(context), heads) for project in (attention.to_k, attention.to_v)
        )
        out = functional.scaled_dot_product_attention(query, key, value, attention_mask)
        if nested_subjects is not None:
            out = out + nested_subjects.delta(self.site, query, key, value).to(out.dtype)
        projected: Tensor = attention.to_out[0](merge_heads(out))
        return attention.to_out[1](projected)


class SelfAttentionProcessor:
    """A self-attention layer's own processor, deaf to the subjects that diffusers passes to all."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self, *arguments: Any, nested_subjects: NestedSubjects | None = None, **options: Any
    ) -> Tensor:
        return self.inner(*arguments, **options)


def install_processors(unet: Any, layers: Mapping[Site, Any]) -> None:
    """Makes the UNet take `cross_attention_kwargs={"nested_subjects": ...}`; else it is unchanged."""
    site_of = {layer: site for site, layer in layers.items()}
    for module in unet.modules():
        processor = getattr(module, "processor", None)
        if module in site_of:
            module.set_processor(CrossAttentionProcessor(site_of[module]))
        elif processor is not None and hasattr(module, "set_processor"):
            module.set_processor(SelfAttentionProcessor(processor))
