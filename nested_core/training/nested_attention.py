"""Nested attention while training: what a base model's cross-attention layers add for the subjects.

`NestedSubjects` goes for every base model; the processors put it into a UNet of diffusers. Nothing
here imports diffusers; its `Attention` modules are used by their attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class Subjects(Protocol):
    """One subject for every row of a batch."""

    def delta(self, site: Site, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """What they add to the output of this site, `[batch, heads, pixels, head_dim]`."""
        ...


def attend(
    query: Float[Tensor, "batch pixels inner"],
    key: Float[Tensor, "batch tokens inner"],
    value: Float[Tensor, "batch tokens inner"],
    num_heads: int,
    mask: Tensor | None = None,
    site: Site | None = None,
    subjects: Subjects | None = None,
) -> Float[Tensor, "batch pixels inner"]:
    """A layer's attention and, where there are subjects at its site, what they add to it."""
    query, key, value = (split_heads(each, num_heads) for each in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value, mask)
    if site is not None and subjects is not None:
        out = out + subjects.delta(site, query, key, value).to(out.dtype)
    return merge_heads(out)


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
        out = attend(
            attention.to_q(hidden_states),
            attention.to_k(context),
            attention.to_v(context),
            attention.heads,
            attention_mask,
            self.site,
            nested_subjects,
        )
        return attention.to_out[1](attention.to_out[0](out))


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
