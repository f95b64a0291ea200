"""One site in one call: what the subjects add to the layer's output in which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import (
    AttentionFunction,
    BoundToken,
    merge_heads,
    nested_values,
    split_heads,
)
from ..kernels import KERNELS, Kernel
from ..sites import Site
from .plan import ActiveSubject, CallPlan, Grid, RowGroup, Rows, TokenOccurrence
from .sighting import Sighting, Watch


@dataclass(frozen=True, eq=False)
class Pixels:
    """The queries of a site.

    Attributes:
        grid: height and width; where nobody knows them, all pixels are in one row.
        whole: the same, if these are the pixels of all that was planned for; else None.
    """

    grid: Grid
    whole: Grid | None


def site_deltas(
    plan: CallPlan,
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    pixels: Pixels,
    attention: AttentionFunction,
    watch: Watch | None = None,
    kernel: Kernel = KERNELS["pytorch"],
) -> list[tuple[Rows, Tensor]]:
    """What the subjects add to this site's output, `[rows of a group, pixels, inner]`, group by group.

    Args:
        query, key, value: `[rows, pixels or text_tokens, inner]`.
        attention: see `nested_values`.
        watch: told of what the site has shown.
    """
    query, key, value = (split_heads(each, num_heads) for each in (query, key, value))
    values = {
        subject: values_of(subject, site, query, attention)
        for subject in plan.subjects
        if site in subject.sites
    }
    deltas: list[tuple[Rows, Tensor]] = []
    for group in plan.groups:
        occurrences = [each for each in group.occurrences if each.subject in values]
        if not occurrences:
            continue
        rows = group.rows
        seen = None if watch is None else _room_for_maps(group, occurrences, pixels.grid)
        tokens = [
            _bound_token(plan, each, values[each.subject], rows, key.shape[2], pixels.whole)
            for each in occurrences
        ]
        delta = kernel(
            query[rows],
            key[rows],
            value[rows],
            tokens,
            None if seen is None else seen.flatten(2),  # a view: what is written stays
            plan.on_grid(group, group.separation, pixels.whole),
        )
        deltas.append((rows, merge_heads(delta)))
        if watch is not None and seen is not None:
            bindings = tuple(each.subject.binding for each in occurrences)
            is_on_grid = pixels.whole is not None
            sighting = Sighting(site, group.row_numbers, bindings, seen, is_on_grid)
            watch.saw(sighting, tokens, value[rows])
    return deltas


def values_of(
    subject: ActiveSubject, site: Site, query: Tensor, attention: AttentionFunction
) -> Tensor:
    """v*(q) of a subject for all rows that contain it, `[rows, heads, pixels, head_dim]`."""
    projected = subject.keys_values.by_site[site]
    query = query[subject.rows]
    key, value = (
        split_heads(each.to(query), query.shape[1]).expand(len(query), -1, -1, -1)
        for each in (projected.key, projected.value)
    )
    return nested_values(query, key, value, attention, projected.log_weights)


def _room_for_maps(group: RowGroup, occurrences: Sequence[TokenOccurrence], grid: Grid) -> Tensor:
    device = occurrences[0].positions.device
    return torch.empty(len(group.row_numbers), len(occurrences), *grid, device=device)


def _bound_token(
    plan: CallPlan,
    occurrence: TokenOccurrence,
    values: Tensor,
    rows: Rows,
    num_text_tokens: int,
    grid: Grid | None,
) -> BoundToken:
    subject = occurrence.subject
    binding = subject.binding
    region = plan.on_grid(subject, subject.region, grid)
    position = occurrence.positions_among(num_text_tokens, plan.num_text_tokens)
    assert position is not None
    values = values[occurrence.rows_of_subject]
    return BoundToken(
        position=position,
        values=-values if occurrence.is_negated else values,
        value_norm=binding.subject.encoder.config.value_norm,
        strength=binding.strength,
        token_weight=binding.token_weight,
        region=None if region is None else region[rows],
        presence=subject.presence,
        share=plan.on_grid(occurrence, occurrence.share, grid),
    )
