"""One site in one call: what the subjects add to the layer's output in which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention import (
    AttentionFunction,
    BoundToken,
    nested_values,
    split_heads,
)
from ..joint import JointSoftmax
from ..kernels import KERNELS, Kernel
from ..sites import Site
from .plan import ActiveSubject, CallPlan, Grid, RowGroup, Rows, TokenOccurrence
from .sighting import Sighting, Watch


@dataclass(frozen=True, eq=False)
class Pixels:
    """The queries of a site, frame by frame.

    Attributes:
        grid: height and width of a frame; where nobody knows them, all pixels are in one row.
        whole: the same, if these are the pixels of all that was planned for; else None.
    """

    grid: Grid
    whole: Grid | None
    frames: int = 1


@dataclass(frozen=True, eq=False)
class SiteInputs:
    """What an attention layer reads.

    Attributes:
        query: of the pixels, `[rows, heads, pixels, head_dim]`.
        key, value: of the text, `[rows, heads, text_tokens, head_dim]`.
        joint: of some rows, where the layer's softmax is over more keys than the text's.
        key_norm: what the model does to keys of its text, `[1, tokens, inner]`, for encoders that
            were trained with it; None: nothing.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    joint: Callable[[Rows], JointSoftmax] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None


def site_deltas(
    plan: CallPlan,
    site: Site,
    inputs: SiteInputs,
    pixels: Pixels,
    attention: AttentionFunction,
    watch: Watch | None = None,
    kernel: Kernel = KERNELS["pytorch"],
) -> list[tuple[Rows, Tensor]]:
    """What the subjects add to this site's output, group by group.

    Each is `[rows of a group, heads, pixels, head_dim]`: whoever adds it to an output need not copy it.

    Args:
        attention: see `nested_values`.
        watch: told of what the site has shown.
    """
    values = {
        subject: values_of(subject, site, inputs.query, attention, inputs.key_norm)
        for subject in plan.subjects
        if site in subject.sites
    }
    deltas: list[tuple[Rows, Tensor]] = []
    for group in plan.groups:
        occurrences = [each for each in group.occurrences if each.subject in values]
        if not occurrences:
            continue
        rows = group.rows
        seen = None if watch is None else _room_for_maps(group, occurrences, pixels)
        tokens = [
            _bound_token(plan, each, values[each.subject], rows, inputs.key.shape[2], pixels)
            for each in occurrences
        ]
        delta = kernel(
            inputs.query[rows],
            inputs.key[rows],
            inputs.value[rows],
            tokens,
            None if seen is None else seen.flatten(2),  # a view: what is written stays
            plan.on_grid(group, group.separation, pixels.whole, pixels.frames),
            None if inputs.joint is None else inputs.joint(rows),
        )
        deltas.append((rows, delta))
        if watch is not None and seen is not None:
            bindings = tuple(each.subject.binding for each in occurrences)
            is_on_grid = pixels.whole is not None
            sighting = Sighting(site, group.row_numbers, bindings, seen, is_on_grid)
            first = [_of_first_frame(each, pixels) for each in tokens]
            watch.saw(sighting, first, inputs.value[rows])
    return deltas


def values_of(
    subject: ActiveSubject,
    site: Site,
    query: Tensor,
    attention: AttentionFunction,
    key_norm: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """v*(q) of a subject for all rows that contain it, `[rows, heads, pixels, head_dim]`.

    Where a layer has fewer heads of keys than of queries, several heads of queries share one.
    """
    projected = subject.keys_values.by_site[site]
    query = query[subject.rows]
    num_heads, head_dim = query.shape[1], query.shape[3]
    key = projected.key
    if key_norm is not None and subject.binding.subject.encoder.config.nested_key == "model_norm":
        key = key_norm(key.to(query))

    def of_heads(each: Tensor) -> Tensor:
        split = split_heads(each.to(query), each.shape[-1] // head_dim)
        split = split.repeat_interleave(num_heads // split.shape[1], dim=1)
        return split.expand(len(query), -1, -1, -1)

    return nested_values(
        query, of_heads(key), of_heads(projected.value), attention, projected.log_weights
    )


def _room_for_maps(
    group: RowGroup, occurrences: Sequence[TokenOccurrence], pixels: Pixels
) -> Tensor:
    shape = (len(group.row_numbers), len(occurrences), pixels.frames, *pixels.grid)
    return torch.empty(shape, device=occurrences[0].positions.device)


def _of_first_frame(token: BoundToken, pixels: Pixels) -> BoundToken:
    """What the pixels of a still picture, or of a video's first frame, are given."""
    if pixels.frames == 1:
        return token
    frame = slice(0, pixels.grid[0] * pixels.grid[1])
    region, share = (
        None if each is None else each[:, :, frame] for each in (token.region, token.share)
    )
    return replace(token, values=token.values[:, :, frame], region=region, share=share)


def _bound_token(
    plan: CallPlan,
    occurrence: TokenOccurrence,
    values: Tensor,
    rows: Rows,
    num_text_tokens: int,
    pixels: Pixels,
) -> BoundToken:
    subject = occurrence.subject
    binding = subject.binding
    region = plan.on_grid(subject, subject.region, pixels.whole, pixels.frames)
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
        share=plan.on_grid(occurrence, occurrence.share, pixels.whole, pixels.frames),
    )
