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

What costs time is reading values, pixel by pixel and channel by channel. So the sums are computed
with their terms gathered by value,

    delta  = sum_s a_s(q) v*_s(q) - sum_s b_s(q) V[s] + c(q) base

and a, b and c are one number per pixel and head, into which all the factors above go.

Shapes: queries, keys and values are split into heads, `[batch, heads, tokens, head_dim]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from .joint import JointSoftmax
from .shapes import Float, Int

ValueNormMode = Literal["per_head", "all_heads", "none"]
AttentionFunction = Callable[..., Tensor]  # of query, key, value and, where there is one, a bias

# A value of length zero has no direction to keep. The factor that would bring it to its length stays
# finite, and zero stays zero.
_SMALLEST = 1e-20

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
    factor = norm_factor(values, text_value, norm)
    return values if isinstance(factor, float) else values * factor


def norm_factor(
    values: Float[Tensor, "batch heads pixels head_dim"],
    text_value: Float[Tensor, "batch heads 1 head_dim"],
    norm: ValueNorm,
) -> Float[Tensor, "batch #heads pixels 1"] | float:
    """By what `normalise_values` multiplies the values, in float32 at least."""
    if norm.mode == "none":
        return 1.0
    dims = (-1,) if norm.mode == "per_head" else (-3, -1)
    length, text_length = _length(values, dims), _length(text_value, dims)
    return norm.scale * text_length / length.clamp_min(_SMALLEST)


def _length(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    norm = cast("Callable[..., Tensor]", torch.linalg.vector_norm)  # pyright: ignore[reportUnknownMemberType]
    dtype = torch.promote_types(values.dtype, torch.float32)
    return norm(values, dim=dims, keepdim=True, dtype=dtype)


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
    scaled_key = text_key.float() * query.shape[-1] ** -0.5  # smaller than the table of logits
    layer = _Layer(scaled_key, text_value.float(), joint)
    pieces = [
        _delta_of_pixels(query[:, :, pixels].float(), layer, bound_tokens, pixels, seen, separation)
        for pixels in _pixel_slices(query, text_key)
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The text of a layer: keys divided by the root of the head's width, and values, in float32."""

    scaled_key: Tensor
    value: Tensor
    joint: JointSoftmax | None

    def columns(
        self, query: Tensor, tokens: Sequence[BoundToken], pixels: slice, needs_output: bool
    ) -> tuple[list[Tensor], Tensor | None]:
        """A_s of each token, `[batch, heads, pixels, 1]`; the layer's output, where it is needed."""
        if self.joint is None:
            attention = (query @ self.scaled_key.mT).softmax(dim=-1)
            columns = [_columns_at(attention, token.position) for token in tokens]
            return columns, attention @ self.value if needs_output else None
        columns = [
            _column_among_all(query, self.scaled_key, each, pixels, self.joint) for each in tokens
        ]
        return columns, self.joint.output[:, :, pixels].float() if needs_output else None


def _delta_of_pixels(
    query: Tensor,
    layer: _Layer,
    bound_tokens: Sequence[BoundToken],
    pixels: slice,
    seen: Tensor | None,
    separation: Tensor | None,
) -> Tensor:
    is_weighted = any(token.token_weight != 1.0 for token in bound_tokens)
    columns, output = layer.columns(query, bound_tokens, pixels, is_weighted)
    if seen is not None:
        seen[:, :, pixels] = torch.stack([each.mean(dim=(1, 3)) for each in columns], dim=1)

    # A' follows from A alone: weighting a logit by log g multiplies its share by g, and all
    # shares are divided by what they now sum to.
    gains = [_gain(token, pixels) for token in bound_tokens]
    surplus = [column * (gain - 1.0) for column, gain in zip(columns, gains, strict=True)]
    total = 1.0 + sum(surplus) if is_weighted else 1.0
    attended = [column * gain / total for column, gain in zip(columns, gains, strict=True)]

    texts = [_rows_at(layer.value, token.position) for token in bound_tokens]
    taken = 0.0 if separation is None else separation[:, :, pixels].float()
    owned = _Owned.of(bound_tokens, attended, taken, pixels)
    delta: Tensor | None = None
    for token, column, excess, text in zip(bound_tokens, attended, surplus, texts, strict=True):
        competes = token.share is not None
        moved = column * token.strength * _region(token, pixels)
        moved = moved * (1.0 - taken) if competes else moved
        star, own = moved, moved
        if competes:
            star = moved + owned.attention * owned.share(token, pixels)
            own = moved + column * owned.shares
        if is_weighted:
            own = own - excess / total
        values = token.values[:, :, pixels]
        star = star * norm_factor(values, text, token.value_norm)
        delta = star * values if delta is None else delta.add_(star * values)
        delta = delta.addcmul_(own, text, value=-1.0)
    assert delta is not None, "a group of rows has a bound token"
    return delta if output is None else delta.add_(output * (1.0 / total - 1.0))


@dataclass(frozen=True, eq=False)
class _Owned:
    """What competing tokens offer of each pixel's owner, instead of their own.

    A token s would offer V[s] + sum_t share_t w_t p_t (v*_t - V[s]), p being the presence: a mask is
    in the share already. Summed over all s, v*_t has the attention to all of them as its factor.

    Attributes:
        taken: how far they do.
        attention: sum_s A'_s.
        shares: taken sum_t share_t w_t p_t.
    """

    taken: Tensor | float
    attention: Tensor | float
    shares: Tensor | float

    @classmethod
    def of(
        cls,
        tokens: Sequence[BoundToken],
        attended: Sequence[Tensor],
        taken: Tensor | float,
        pixels: slice,
    ) -> _Owned:
        competing = [
            each for each in zip(tokens, attended, strict=True) if each[0].share is not None
        ]
        nobody = cls(taken, 0.0, 0.0)
        return cls(
            taken,
            sum((column for _, column in competing), start=0.0),
            sum((nobody.share(token, pixels) for token, _ in competing), start=0.0),
        )

    def share(self, token: BoundToken, pixels: slice) -> Tensor:
        """taken share_t w_t p_t."""
        assert token.share is not None
        own = token.share[:, :, pixels].float()
        return self.taken * own * (token.strength * token.presence)


def blended_values(
    token: BoundToken, text_value: Float[Tensor, "batch heads text_tokens head_dim"]
) -> Float[Tensor, "batch heads pixels head_dim"]:
    """u(q): the value that each pixel is given in place of the text token's, in float32."""
    text = _rows_at(text_value.float(), token.position)
    star = normalise_values(token.values, text, token.value_norm)
    return text + token.strength * _region(token, slice(None)) * (star - text)


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
    query: Tensor, scaled_key: Tensor, token: BoundToken, pixels: slice, joint: JointSoftmax
) -> Tensor:
    """The attention to one text token, `[batch, heads, pixels, 1]`, in a softmax over more keys."""
    logits = query @ _rows_at(scaled_key, token.position).mT
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
