"""Nested attention while training: what a base model's cross-attention layers add for the subjects.

`NestedSubjects` goes for every base model; the processors put it into a UNet of diffusers. Nothing
here imports diffusers; its `Attention` modules are used by their attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from ..attention import (
    BoundToken,
    ValueNorm,
    merge_heads,
    nested_values,
    normalise_values,
    replacement_delta,
    split_heads,
)
from ..config import NestedKey
from ..shapes import Float, Int
from ..sites import Site

KeysValues = dict[str, tuple[Tensor, Tensor]]  # by the site's path
KeyNorm = Callable[[Tensor], Tensor]  # of keys `[batch, tokens, inner]`
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


@runtime_checkable
class JointSubjects(Protocol):
    """The same for layers whose softmax runs over more keys than the text's."""

    def joint_delta(
        self,
        site: Site,
        query: Tensor,
        key: Tensor,
        text_value: Tensor,
        mask: Tensor | None,
        key_norm: KeyNorm | None,
        /,
    ) -> Tensor:
        """What they add to the output of this site for its pixels.

        Args:
            query: of the pixels, `[batch, heads, pixels, head_dim]`.
            key: all of them, the text's first, `[batch, heads, keys, head_dim]`.
            text_value: of the text, `[batch, heads, text_tokens, head_dim]`.
            mask: of the pixels' attention, as `scaled_dot_product_attention` takes it.
            key_norm: what the model does to the keys of its text.
        """
        ...


def attend_joint(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch key_heads keys head_dim"],
    value: Float[Tensor, "batch key_heads keys head_dim"],
    num_text_tokens: int,
    pixels: slice,
    mask: Tensor | None = None,
    site: Site | None = None,
    subjects: JointSubjects | None = None,
    key_norm: KeyNorm | None = None,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """A layer's attention with what the subjects add to its pixels; all other rows stay as they are.

    For joint attention, where text and pixels ask and answer alike, and for cross-attention too: all
    keys are then the text's, and all queries pixels. No table of attention is held, and everything
    is differentiable.

    Args:
        key: behind the model's norm and rotation. Fewer heads than the query's are each shared by as
            many of its heads as follow each other.
        num_text_tokens: how many of the first keys are the text's.
        pixels: which queries are the picture's.
        mask: as `scaled_dot_product_attention` takes it: kept keys, or what is added to the logits,
            `[#batch, #heads, #queries, keys]`.
        site: None for a layer at which no subject acts.
        key_norm: what the model does to the keys of its text, for encoders that are trained with it.
    """
    sharing = query.shape[1] // key.shape[1]
    if sharing > 1:
        key, value = (each.repeat_interleave(sharing, dim=1) for each in (key, value))
    out = functional.scaled_dot_product_attention(query, key, value, mask)
    if site is None or subjects is None:
        return out
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[..., pixels, :]
    delta = subjects.joint_delta(
        site, query[:, :, pixels], key, value[:, :, :num_text_tokens], mask, key_norm
    )
    start, stop, _ = pixels.indices(query.shape[2])
    changed = out[:, :, start:stop] + delta.to(out.dtype)
    return torch.cat([out[:, :, :start], changed, out[:, :, stop:]], dim=2)


def shares_of_tokens(
    query: Float[Tensor, "batch heads pixels head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    positions: Int[Tensor, "batch places"],
    mask: Tensor | None = None,
) -> Float[Tensor, "batch heads pixels places"]:
    """A_s(q): how much each pixel attends to some keys, in a softmax over all of them.

    Exact, and at no price in memory: attention reads values that are 1 at the key in question and 0
    elsewhere, one channel for each place. So it has the shape of any other attention, and whichever
    kernel computes those without a table computes this.

    Args:
        positions: of the keys; -1 for none, whose share is 0.
    """
    batch, _, num_keys, head_dim = key.shape
    num_places = positions.shape[1]
    assert num_places <= head_dim
    numbers = torch.arange(num_keys, device=key.device)[None, :, None]
    marked = (numbers == positions[:, None]).to(key.dtype)
    indicator = functional.pad(marked, (0, head_dim - num_places))[:, None]
    indicator = indicator.expand(batch, key.shape[1], -1, -1)
    shares = functional.scaled_dot_product_attention(query, key, indicator, mask)
    return shares[..., :num_places]


@dataclass(frozen=True, eq=False)
class NestedSubjects:
    """One subject for every row of a batch, bound to tokens of that row's caption.

    Attributes:
        keys_values: by the site's path, before the split into heads.
        positions: of the bound token. A text that several encoders have read has it in several
            places, `[batch, places]`; -1 is no place.
        nested_key: as the encoder file says it.
    """

    keys_values: Mapping[str, tuple[Tensor, Tensor]]
    positions: Int[Tensor, " batch"] | Int[Tensor, "batch places"]
    value_norm: ValueNorm
    nested_key: NestedKey = "plain"

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

    def joint_delta(
        self,
        site: Site,
        query: Float[Tensor, "batch heads pixels head_dim"],
        key: Float[Tensor, "batch heads keys head_dim"],
        text_value: Float[Tensor, "batch heads text_tokens head_dim"],
        mask: Tensor | None = None,
        key_norm: KeyNorm | None = None,
    ) -> Float[Tensor, "batch heads pixels head_dim"]:
        """See `JointSubjects`; in float32 but for the attention itself."""
        positions = self.positions.view(len(query), -1)
        values = self._values(site, query, key_norm).float()
        shares = shares_of_tokens(query, key, positions, mask).float()
        text_value = text_value.float()
        delta = torch.zeros_like(values)
        for place in range(positions.shape[1]):
            # A place that is none has no share, whatever stands in the row that is read for it.
            row = positions[:, place].clamp_min(0).view(-1, 1, 1, 1)
            text = text_value.take_along_dim(row, dim=2)
            moved = normalise_values(values, text, self.value_norm) - text
            delta = delta + shares[..., place, None] * moved
        return delta

    def _values(self, site: Site, query: Tensor, key_norm: KeyNorm | None) -> Tensor:
        """v*(q), before the value norm."""
        key, value = (each.to(query.dtype) for each in self.keys_values[site.path])
        if key_norm is not None and self.nested_key == "model_norm":
            key = key_norm(key)
        num_heads, head_dim = query.shape[1], query.shape[3]

        def of_heads(each: Tensor) -> Tensor:
            split = split_heads(each, each.shape[-1] // head_dim)
            return split.repeat_interleave(num_heads // split.shape[1], dim=1)

        return nested_values(query, of_heads(key), of_heads(value))


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
