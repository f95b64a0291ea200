"""Nested attention: one prompt token whose value depends on the pixel that asks (arXiv:2501.01407).

A cross-attention layer lets each pixel's query `q` read the prompt: `A = softmax(q K^T / sqrt(d))`,
`out = A V`. A text token s offers the same value `V[s]` to every pixel. Nested attention gives s a
value of its own for each query, looked up by a second, small attention over the subject's tokens:

    v*(q)  = softmax(q Kn^T / sqrt(d)) Vn           nested_values
    v*(q) <- scale |V[s]| v*(q) / |v*(q)|           normalise_values
    u(q)   = V[s] + w m(q) (v*(q) - V[s])           w: strength, m: region
    out    = base + sum_j (A'_j - A_j) V[j] + sum_s A'_s (u_s - V[s])        replacement_delta

The last line is the paper's "replace the value of s" written as a difference to what the layer
computes anyway. Attention is linear in its values, so the difference is exact, several subjects
simply add, and no table with one value per pixel and token is ever built. A' is A with `m log t`
added to the logit of s, t being the token's weight.

Shapes: queries, keys and values are split into heads, `[batch, heads, tokens, head_dim]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from .joint import JointSoftmax
from .shapes import Float, Int

ValueNormMode = Literal["per_head", "all_heads", "none"]
AttentionFunction = Callable[..., Tensor]  # of query, key, value and, where there is one, a bias

# A value of length zero has no direction to keep; divided by this, it stays zero.
_SMALLEST = torch.finfo(torch.float32).tiny

# Elements of the largest table of attention weights held at once, in float32: 128 MB.
_MAX_TABLE_ELEMENTS = 2**25


@dataclass(frozen=True)
class ValueNorm:
    """How long the subject's value is made: `scale` times the text value it stands in for.

    `per_head` measures both lengths head by head, `all_heads` over the whole layer, and `none`
    leaves the value as it is (`scale` is then unused). The authors' app uses a factor of 2.
    """

    mode: ValueNormMode = "per_head"
    scale: float = 2.0


def split_heads(
    merged: Float[Tensor, "batch tokens inner"], num_heads: int
) -> Float[Tensor, "batch num_heads tokens head_dim"]:
    """The layer's channels as heads."""
    return rearrange(merged, "batch tokens (heads dim) -> batch heads tokens dim", heads=num_heads)


def merge_heads(
    split: Float[Tensor, "batch num_heads tokens head_dim"],
) -> Float[Tensor, "batch tokens inner"]:
    """The heads side by side again."""
    return rearrange(split, "batch heads tokens dim -> batch tokens (heads dim)")


def nested_values(
    query: Float[Tensor, "batch heads pixels head_dim"],
    nested_key: Float[Tensor, "batch heads subject_tokens head_dim"],
    nested_value: Float[Tensor, "batch heads subject_tokens head_dim"],
    attention: AttentionFunction = functional.scaled_dot_product_attention,
    log_weights: Float[Tensor, " subject_tokens"] | None = None,
) -> Float[Tensor, "batch heads pixels head_dim"]:
    """v*(q): the subject's value as each pixel sees it.

    A text token offers one value to every pixel. The subject offers many, and each query looks up
    its own: an eye reads the eye. The query is the layer's own; nothing projects it a second time.

    Args:
        attention: computes `softmax(q k^T / sqrt(head_dim)) v`; a host passes its own backend. A
            fourth argument `[1, 1, 1, subject_tokens]` is added to the logits.
        log_weights: added to the logits of each subject token: weighted photographs.
    """
    if log_weights is None:
        return attention(query, nested_key, nested_value)
    return attention(query, nested_key, nested_value, log_weights.to(query)[None, None, None])


def normalise_values(
    values: Float[Tensor, "batch heads pixels head_dim"],
    text_value: Float[Tensor, "batch heads 1 head_dim"],
    norm: ValueNorm,
) -> Float[Tensor, "batch heads pixels head_dim"]:
    """v*(q) at `scale` times the length of the text value that it replaces; zero stays zero."""
    if norm.mode == "none":
        return values
    dims = (-1,) if norm.mode == "per_head" else (-3, -1)
    length, text_length = _length(values, dims), _length(text_value, dims)
    return values / length.clamp_min(_SMALLEST) * (norm.scale * text_length)


def _length(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.square().sum(dim=dims, keepdim=True).sqrt()


@dataclass(frozen=True)
class BoundToken:
    """One occurrence of a subject's token in the prompt of every row of a batch.

    Attributes:
        position: the token's place among the text tokens, per row.
        values: v*(q) of the subject, before the value norm.
        strength: w, 0 the text token's own value, 1 as trained.
        token_weight: t > 0, multiplies the token's share of attention before the softmax.
        region: where the subject may act, in [0, 1]; None is everywhere.
        presence: how much it acts now, in [0, 1]. m(q) is region times presence.
        share: whose each pixel is (`competition.py`); None for a token that does not compete.
    """

    position: Int[Tensor, " batch"]
    values: Float[Tensor, "batch heads pixels head_dim"]
    value_norm: ValueNorm
    strength: float = 1.0
    token_weight: float = 1.0
    region: Float[Tensor, "batch 1 pixels 1"] | None = None
    presence: float = 1.0
    share: Float[Tensor, "batch 1 pixels 1"] | None = None


def replacement_delta(
    query: Float[Tensor, "batch heads pixels head_dim"],
    text_key: Float[Tensor, "batch heads text_tokens head_dim"],
    text_value: Float[Tensor, "batch heads text_tokens head_dim"],
    bound_tokens: Sequence[BoundToken],
    seen: Float[Tensor, "batch bound_tokens pixels"] | None = None,
    separation: Float[Tensor, "batch 1 pixels 1"] | None = None,
    joint: JointSoftmax | None = None,
) -> Float[Tensor, "batch heads pixels head_dim"]:
    """What replacing the bound tokens' values, and weighting those tokens, adds to the layer's output.

    Computed in float32: half precision loses the attention to one token among many.

    Args:
        seen: filled, where given, with A_s(q): how much each pixel attends to each bound token,
            before any token weight, as the mean over heads.
        separation: in [0, 1], how far the tokens that compete offer the value of the subject that
            owns the pixel instead of their own's. None: u_s stays as above.
        joint: where the softmax is over more keys than the text's. None: over the text alone.
    """
    key, value = text_key.float(), text_value.float()
    pieces = [
        _delta_of_pixels(
            query[:, :, pixels].float(), key, value, bound_tokens, pixels, seen, separation, joint
        )
        for pixels in _pixel_slices(query, key)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _delta_of_pixels(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bound_tokens: Sequence[BoundToken],
    pixels: slice,
    seen: Tensor | None,
    separation: Tensor | None,
    joint: JointSoftmax | None,
) -> Tensor:
    text_values = [_rows_at(value, token.position) for token in bound_tokens]
    attention = torch.empty(0)
    if joint is None:
        attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        columns = [_columns_at(attention, token.position) for token in bound_tokens]
    else:
        columns = [_column_among_all(query, key, each, pixels, joint) for each in bound_tokens]
    gains = [_gain(token, pixels) for token in bound_tokens]
    if seen is not None:
        seen[:, :, pixels] = torch.stack([each.mean(dim=(1, 3)) for each in columns], dim=1)

    # A' follows from A alone: weighting a logit by log g multiplies its share by g, and all
    # shares are divided by what they now sum to.
    total = 1.0
    delta = torch.zeros_like(query)
    if any(token.token_weight != 1.0 for token in bound_tokens):
        plain = joint.output[:, :, pixels].float() if joint is not None else attention @ value
        surplus = [column * (gain - 1.0) for column, gain in zip(columns, gains, strict=True)]
        total = 1.0 + sum(surplus)
        weighted = sum((s * v for s, v in zip(surplus, text_values, strict=True)), start=plain)
        delta = weighted / total - plain

    attended = [column * gain / total for column, gain in zip(columns, gains, strict=True)]
    taken = 0.0 if separation is None else separation[:, :, pixels].float()
    for token, column, text in zip(bound_tokens, attended, text_values, strict=True):
        own = 1.0 if token.share is None else 1.0 - taken
        delta = delta + own * column * _moved_values(token, text, pixels)
    if separation is not None:
        delta = delta + taken * _delta_of_owners(bound_tokens, attended, text_values, pixels)
    return delta


def _delta_of_owners(
    bound_tokens: Sequence[BoundToken],
    attended: Sequence[Tensor],
    text_values: Sequence[Tensor],
    pixels: slice,
) -> Tensor | float:
    """The delta if all competing tokens offered the value of the pixel's owner.

    A token s would offer V[s] + sum_t share_t w_t p_t (v*_t - V[s]), p being the presence: a mask is
    in the share already. Summed over all s the terms gather around the attention to all of them,
    C = sum_s A_s, and T = sum_s A_s V[s].
    """
    entries = zip(bound_tokens, attended, text_values, strict=True)
    competing = [entry for entry in entries if entry[0].share is not None]
    attention = sum(column for _, column, _ in competing)
    text = sum(column * text for _, column, text in competing)
    delta: Tensor | float = 0.0
    for token, _, own_text in competing:
        assert token.share is not None
        share = token.share[:, :, pixels].float() * token.strength * token.presence
        delta = delta + share * (attention * _star(token, own_text, pixels) - text)
    return delta


def blended_values(
    token: BoundToken, text_value: Float[Tensor, "batch heads text_tokens head_dim"]
) -> Float[Tensor, "batch heads pixels head_dim"]:
    """u(q): the value that each pixel is given in place of the text token's, in float32."""
    text = _rows_at(text_value.float(), token.position)
    return text + _moved_values(token, text, slice(None))


def _moved_values(token: BoundToken, text: Tensor, pixels: slice) -> Tensor:
    """u(q) - V[s]."""
    return token.strength * _region(token, pixels) * (_star(token, text, pixels) - text)


def _star(token: BoundToken, text: Tensor, pixels: slice) -> Tensor:
    """v*(q), normed."""
    return normalise_values(token.values[:, :, pixels].float(), text, token.value_norm)


def _gain(token: BoundToken, pixels: slice) -> Tensor | float:
    """t to the power m(q): the factor on the token's unnormalised share of attention."""
    if token.token_weight == 1.0:
        return 1.0
    return token.token_weight ** _region(token, pixels)


def _region(token: BoundToken, pixels: slice) -> Tensor | float:
    """m(q)."""
    if token.region is None:
        return token.presence
    return token.presence * token.region[:, :, pixels].float()


def _rows_at(value: Tensor, position: Tensor) -> Tensor:
    """`value[b, :, position[b]]` as `[batch, heads, 1, head_dim]`."""
    return value.take_along_dim(position.view(-1, 1, 1, 1), dim=2)


def _columns_at(attention: Tensor, position: Tensor) -> Tensor:
    """`attention[b, :, :, position[b]]` as `[batch, heads, pixels, 1]`."""
    return attention.take_along_dim(position.view(-1, 1, 1, 1), dim=3)


def _column_among_all(
    query: Tensor, key: Tensor, token: BoundToken, pixels: slice, joint: JointSoftmax
) -> Tensor:
    """The attention to one text token, `[batch, heads, pixels, 1]`, in a softmax over more keys."""
    logits = query @ _rows_at(key, token.position).mT * query.shape[-1] ** -0.5
    if joint.text_bias is not None:
        bias = joint.text_bias.float()
        bias = bias[:, :, pixels] if bias.shape[2] > 1 else bias
        logits = logits + _columns_at(bias.expand(len(query), -1, -1, -1), token.position)
    return (logits - joint.log_sum_exp[:, :, pixels].float()).exp()


def _pixel_slices(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Runs of pixels whose attention table fits the budget; each pixel's formula stands alone."""
    batch, heads, num_pixels, _ = query.shape
    per_pixel = batch * heads * key.shape[2]
    step = max(1, _MAX_TABLE_ELEMENTS // per_pixel)
    for start in range(0, num_pixels, step):
        yield slice(start, min(start + step, num_pixels))
