"""The method as the paper writes it, pixel by pixel, in float64: what the fast path must equal.

It knows nothing of the pack: it is given each row's bound positions and puts a replace-patch with a
table of one value per pixel and text token on every site of a plain model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class NaiveSubject:
    """A subject at given positions of the prompt. `site_weights(site)` is its (to_k, to_v)."""

    tokens: Tensor
    site_weights: Callable[[tuple[str, int, int]], tuple[Tensor, Tensor]]
    mode: str = "per_head"
    scale: float = 2.0
    strength: float = 1.0
    token_weight: float = 1.0
    mask: Tensor | None = None
    sites: Callable[[tuple[str, int, int]], bool] = lambda site: True
    window: tuple[float, float] = (math.inf, 0.0)


Slots = Mapping[int, NaiveSubject]
RowSlots = Callable[[dict[str, Any], int], Sequence[Slots]]
Tables = Callable[..., tuple[Tensor, Tensor]]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: dict[str, Any],
    row_slots: RowSlots,
    make_tables: Tables | None = None,
) -> Tensor:
    """One site, row by row and head by head, with a value table `[pixels, text_tokens, head_dim]`."""
    make_tables = make_tables or _value_tables
    site = (*options["block"], options["block_index"])
    heads, dtype = options["n_heads"], query.dtype
    q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    out = torch.empty_like(q)
    for row, slots in enumerate(row_slots(options, query.shape[0])):
        tables, logits = make_tables(site, q[row], k[row], v[row], slots, options, row)
        out[row] = torch.einsum("hpt,hptd->hpd", logits.softmax(-1), tables)
    return out.transpose(1, 2).flatten(-2).to(dtype)


def _value_tables(
    site: tuple[str, int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: Slots,
    options: dict[str, Any],
    row: int,
) -> tuple[Tensor, Tensor]:
    heads, pixels, width = q.shape
    logits = torch.einsum("hpd,htd->hpt", q, k) / math.sqrt(width)
    tables = v[:, None].expand(heads, pixels, -1, -1).clone()
    sigma = float(options["sigmas"][0])
    for position, subject in slots.items():
        start, end = subject.window
        if not subject.sites(site) or not end <= sigma <= start:
            continue
        to_k, to_v = (w.double() for w in subject.site_weights(site))
        nested_k, nested_v = (
            (subject.tokens.double() @ w.T).unflatten(-1, (heads, -1)).transpose(0, 1)
            for w in (to_k, to_v)
        )
        weights = (torch.einsum("hpd,hnd->hpn", q, nested_k) / math.sqrt(width)).softmax(-1)
        star = torch.einsum("hpn,hnd->hpd", weights, nested_v)
        text = v[:, position][:, None]
        if subject.mode == "per_head":
            star = star / star.norm(dim=-1, keepdim=True) * text.norm(dim=-1, keepdim=True)
            star = star * subject.scale
        elif subject.mode == "all_heads":
            star = star / star.norm(dim=(0, 2), keepdim=True) * text.norm(dim=(0, 2), keepdim=True)
            star = star * subject.scale
        region = _region(subject.mask, options["activations_shape"][-2:], row)
        tables[:, :, position] = text + subject.strength * region * (star - text)
        logits[:, :, position] += region[..., 0] * math.log(subject.token_weight)
    return tables, logits


def _region(mask: Tensor | None, grid: Sequence[int], row: int) -> Tensor:
    if mask is None:
        return torch.ones(1, 1, 1, dtype=torch.float64)
    resized = functional.interpolate(mask.double()[:, None], size=tuple(grid), mode="area")
    return resized[row % len(resized)].flatten()[None, :, None]


def with_naive_subjects(
    model: Any,
    sites: Sequence[tuple[str, int, int]],
    row_slots: RowSlots,
    make_tables: Tables | None = None,
) -> Any:
    """A clone of a plain model in which the subjects act, computed naively.

    Args:
        make_tables: as `_value_tables`, which it is unless given.
    """
    clone = model.clone()
    clone.set_model_attn2_patch(_keep_context)
    for block, number, index in sites:
        clone.set_model_attn2_replace(
            lambda q, k, v, options: attend(q, k, v, options, row_slots, make_tables),
            block,
            number,
            index,
        )
    return clone


def positive_only(slots: Slots, batch: int = 1) -> RowSlots:
    """Rows of the positive prompt have these slots, all others none."""

    def row_slots(options: dict[str, Any], num_rows: int) -> Sequence[Slots]:
        kinds = options["cond_or_uncond"]
        assert num_rows == len(kinds) * batch
        return [slots if kind == 0 else {} for kind in kinds for _ in range(batch)]

    return row_slots


def rows_reading(known: Sequence[tuple[Tensor, Slots]]) -> RowSlots:
    """Rows are told by the text context that they read: needed where nodes run calls of their own.

    Works on the models of `with_naive_subjects`, which leave the context where a site can see it.
    """

    def row_slots(options: dict[str, Any], num_rows: int) -> Sequence[Slots]:
        context = options[_CONTEXT]
        assert len(context) == num_rows
        return [slots_of(row, known) for row in context]

    return row_slots


def slots_of(row: Tensor, known: Sequence[tuple[Tensor, Slots]]) -> Slots:
    """The subjects of one row, told by the text that it reads."""
    for context, slots in known:
        repeats, rest = divmod(len(row), context.shape[1])
        if rest == 0 and torch.equal(row, context[0].to(row).repeat(repeats, 1)):
            return {
                position + context.shape[1] * nth: subject
                for nth in range(repeats)
                for position, subject in slots.items()
            }
    return {}


_CONTEXT = "naive_context"


def _keep_context(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Any:
    options[_CONTEXT] = key
    return query, key, value
