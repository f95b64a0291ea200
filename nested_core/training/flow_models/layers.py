"""The attention layers of diffusers' transformers with the subjects in them.

Each class does what diffusers' own processor of the layer does, with `attend_joint` for attention. It
is written down here and not taken from there, because what the subjects need, queries, keys and
values, exists only inside. diffusers is not imported: its modules are used by their attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ...attention import merge_heads, split_heads
from ...sites import Site
from ..nested_attention import attend_joint
from .calls import current_call

Rotate = Callable[[Tensor, Any], Tensor]


class JointLayer:
    """One site in which text and pixels ask and answer each other, text first.

    Args:
        rotate: turns queries and keys, `[batch, heads, tokens, head_dim]`, by what the model hands
            to its layers; None: they are not turned.
        is_picture_first: whether the layer's one stream holds the text behind the picture.
    """

    def __init__(
        self, site: Site, rotate: Rotate | None = None, is_picture_first: bool = False
    ) -> None:
        self.site, self.rotate, self.is_picture_first = site, rotate, is_picture_first

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        freqs_cis: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Any:
        call = current_call()
        if encoder_hidden_states is not None:
            num_text = encoder_hidden_states.shape[1]
            texts, pixels = _added(attention, encoder_hidden_states), _own(attention, hidden_states)
            query, key, value = (torch.cat(each, dim=2) for each in zip(texts, pixels, strict=True))
        else:
            num_text = call.num_text_tokens
            query, key, value = _own(attention, hidden_states)
        rotary = freqs_cis if image_rotary_emb is None else image_rotary_emb
        if self.rotate is not None and rotary is not None:
            query, key = self.rotate(query, rotary), self.rotate(key, rotary)
        mask = _mask(attention_mask, encoder_hidden_states_mask, hidden_states.shape[1])
        if self.is_picture_first:
            num_text = query.shape[2] - call.num_text_tokens
            query, key, value = (each.roll(num_text, dims=2) for each in (query, key, value))
            mask = None if mask is None else mask.roll(num_text, dims=3)
        out = attend_joint(
            query,
            key,
            value,
            num_text,
            slice(num_text, num_text + call.num_pixels),
            mask,
            self.site,
            call.subjects,
            _key_norm(attention),
        )
        if self.is_picture_first:
            out = out.roll(-num_text, dims=2)
        merged = merge_heads(out)
        if encoder_hidden_states is None:
            return _projected(attention, merged)
        text = merged[:, :num_text]
        if hasattr(attention, "to_add_out") and attention.to_add_out is not None:
            text = attention.to_add_out(text)
        return _projected(attention, merged[:, num_text:]), text


class CrossLayer:
    """One site in which pixels ask the text alone.

    Args:
        norms_heads: whether the model norms head by head, and not all of them together.
    """

    def __init__(self, site: Site, norms_heads: bool) -> None:
        self.site, self.norms_heads = site, norms_heads

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        query, key, value = (
            attention.to_q(hidden_states),
            attention.to_k(encoder_hidden_states),
            attention.to_v(encoder_hidden_states),
        )
        if not self.norms_heads:
            query, key = attention.norm_q(query), attention.norm_k(key)
        query, key, value = (split_heads(each, attention.heads) for each in (query, key, value))
        if self.norms_heads:
            query, key = attention.norm_q(query), attention.norm_k(key)
        out = attend_joint(
            query,
            key.to(query.dtype),
            value,
            key.shape[2],
            slice(None),
            attention_mask,
            self.site,
            current_call().subjects,
            _key_norm(attention) if self.norms_heads else attention.norm_k,
        )
        return _projected(attention, merge_heads(out))


def _own(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the layer's first stream, in heads and normed."""
    query, key, value = (
        split_heads(project(hidden), attention.heads)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    return _normed(attention.norm_q, query), _normed(attention.norm_k, key), value


def _added(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of its second stream, the text's."""
    query, key, value = (
        split_heads(project(hidden), attention.heads)
        for project in (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
    )
    norms = attention.norm_added_q, attention.norm_added_k
    return _normed(norms[0], query), _normed(norms[1], key), value


def _normed(norm: Any, each: Tensor) -> Tensor:
    return each if norm is None else norm(each)


def _key_norm(attention: Any) -> Callable[[Tensor], Tensor] | None:
    """What a layer with a norm of each head does to the keys of its text, side by side."""
    has_text = getattr(attention, "add_k_proj", None) is not None
    norm = attention.norm_added_k if has_text else attention.norm_k
    if norm is None:
        return None
    return lambda key: merge_heads(norm(split_heads(key, _num_heads(key, norm, attention))))


def _num_heads(key: Tensor, norm: Any, attention: Any) -> int:
    weight = getattr(norm, "weight", None)
    return attention.heads if weight is None else key.shape[-1] // weight.shape[-1]


def _projected(attention: Any, merged: Tensor) -> Tensor:
    """Behind the layer's last projection; some blocks have theirs elsewhere."""
    for module in getattr(attention, "to_out", None) or ():
        merged = module(merged)
    return merged


def _mask(of_keys: Tensor | None, of_text: Tensor | None, num_pixels: int) -> Tensor | None:
    """Which keys are kept, `[batch, 1, 1, keys]`."""
    if of_text is not None:
        kept = of_text.new_ones((len(of_text), num_pixels), dtype=torch.bool)
        of_keys = torch.cat([of_text.bool(), kept], dim=1)
    if of_keys is not None and of_keys.ndim == 2:
        of_keys = of_keys[:, None, None]
    return of_keys


def rotate_pairs(each: Tensor, frequencies: tuple[Tensor, Tensor] | Tensor) -> Tensor:
    """Turns neighbouring channels like the parts of a complex number, in float32.

    Args:
        frequencies: cosines and sines of every channel, `[tokens, head_dim]`; or complex numbers,
            `[tokens, head_dim / 2]` with or without a batch before.
    """
    if isinstance(frequencies, tuple):
        cosine, sine = (part[..., ::2] for part in frequencies)
    else:
        cosine, sine = frequencies.real, frequencies.imag
    if cosine.ndim == 3:
        cosine, sine = cosine[:, None], sine[:, None]
    real, imaginary = rearrange(each.float(), "... (pairs parts) -> parts ... pairs", parts=2)
    turned = real * cosine - imaginary * sine, real * sine + imaginary * cosine
    return torch.stack(turned, dim=-1).flatten(-2).type_as(each)


def install(model: Any, layers: Mapping[str, Any]) -> None:
    """Puts layers in the places of the processors that attention modules of the model have, by name."""
    for name, layer in layers.items():
        model.get_submodule(name).processor = layer
