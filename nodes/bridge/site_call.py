"""One call of the UNet: which rows are bound to which subjects, and what each site adds for them.

Everything that needs to look at numbers happens in `plan_call`, on the CPU, before the UNet runs.
Inside the attention layers nothing reads a tensor's content back from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import comfy.ldm.modules.attention
import torch
from torch import Tensor
from torch.nn import functional

from ...nested_core.attention import (
    BoundToken,
    merge_heads,
    nested_values,
    replacement_delta,
    split_heads,
)
from ...nested_core.binding import Binding
from ...nested_core.sites import AttentionSite
from .kv_cache import SubjectKeysValues

CALL_KEY = "nested_attention"
Patch: TypeAlias = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
Rows: TypeAlias = slice | Tensor


@dataclass(frozen=True, eq=False)
class ActiveSubject:
    """A binding that acts in this call.

    Attributes:
        sites: where it acts.
        rows: every row of the batch whose prompt contains it; they share one attention call.
        region: its mask, `[rows of the call, 1, height, width]`, or None.
    """

    binding: Binding
    keys_values: SubjectKeysValues
    sites: frozenset[AttentionSite]
    rows: Rows
    region: Tensor | None


@dataclass(frozen=True, eq=False)
class TokenOccurrence:
    """The n-th bound token of every row in a group.

    Attributes:
        positions: among the text tokens, per row of the group.
        rows_of_subject: the group's rows among those of the subject.
    """

    subject: ActiveSubject
    positions: Tensor
    rows_of_subject: Rows


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows of the batch whose prompts contain the same bindings in the same order."""

    rows: Rows
    occurrences: tuple[TokenOccurrence, ...]


@dataclass(eq=False)
class SiteCall:
    """What the attention layers need to know during one call of the UNet."""

    num_rows: int
    num_text_tokens: int
    subjects: tuple[ActiveSubject, ...]
    groups: tuple[RowGroup, ...]
    foreign: Mapping[tuple[Any, ...], Patch]
    warn_once: Callable[[str], None]
    _regions: dict[Any, Tensor] = field(default_factory=dict)

    def attend(
        self,
        site: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """The host's own output of this site, with the subjects in place of their tokens' values."""
        base = self._base(site, query, key, value, options)
        subjects = [subject for subject in self.subjects if site in subject.sites]
        if not subjects or not self._is_as_planned(query, key, options):
            return base
        heads = options["n_heads"]
        query, key, value = (split_heads(each, heads) for each in (query, key, value))
        values = {subject: _values(subject, site, query) for subject in subjects}
        out = base.clone()  # a foreign patch may have returned a tensor that it still uses
        for group in self.groups:
            tokens = [
                self._bound_token(occurrence, values[occurrence.subject], group.rows, options)
                for occurrence in group.occurrences
                if occurrence.subject in values
            ]
            if tokens:
                rows = group.rows
                delta = replacement_delta(query[rows], key[rows], value[rows], tokens)
                out[rows] += merge_heads(delta).to(out.dtype)
        return out

    def _base(
        self,
        site: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """Whatever the host and other packs' patches compute here; called once."""
        patch = self.foreign.get(tuple(site), self.foreign.get((site.block, site.number)))
        if patch is not None:
            return patch(query, key, value, options)
        return comfy.ldm.modules.attention.optimized_attention(
            query,
            key,
            value,
            options["n_heads"],
            attn_precision=options["attn_precision"],
            transformer_options=options,
        )

    def _is_as_planned(self, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
        height, width = options["activations_shape"][-2:]
        found = (query.shape[0], key.shape[1], query.shape[1])
        planned = (self.num_rows, self.num_text_tokens, height * width)
        if found == planned:
            return True
        self.warn_once(
            "Nested Attention: another patch changed the shape of cross-attention (rows, text tokens, "
            f"pixels) from {planned} to {found}; there the subjects do not act. Remove that patch, "
            "or limit it to other blocks."
        )
        return False

    def _bound_token(
        self, occurrence: TokenOccurrence, values: Tensor, rows: Rows, options: dict[str, Any]
    ) -> BoundToken:
        binding = occurrence.subject.binding
        region = self._region(occurrence.subject, tuple(options["activations_shape"][-2:]))
        return BoundToken(
            position=occurrence.positions,
            values=values[occurrence.rows_of_subject],
            value_norm=binding.subject.encoder.config.value_norm,
            strength=binding.strength,
            token_weight=binding.token_weight,
            region=None if region is None else region[rows],
        )

    def _region(self, subject: ActiveSubject, grid: tuple[int, int]) -> Tensor | None:
        """m(q) on the grid of a site, `[rows, 1, pixels, 1]`; resized once per grid and call."""
        if subject.region is None:
            return None
        key = (subject, grid)
        if key not in self._regions:
            resized = functional.interpolate(subject.region, size=grid, mode="area")
            self._regions[key] = resized.flatten(2).unsqueeze(-1)
        return self._regions[key]


def _values(subject: ActiveSubject, site: AttentionSite, query: Tensor) -> Tensor:
    """v*(q) of a subject for all rows that contain it."""
    projected = subject.keys_values.by_site[site]
    query = query[subject.rows]
    key, value = (
        split_heads(each.to(query), query.shape[1]).expand(len(query), -1, -1, -1)
        for each in (projected.key, projected.value)
    )
    return nested_values(query, key, value, _host_attention)


def _host_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention backend that the user chose for ComfyUI, in full precision.

    Without transformer options: a foreign override of the model's attentions is not meant for ours.
    """
    return comfy.ldm.modules.attention.optimized_attention(
        query,
        key,
        value,
        query.shape[1],
        attn_precision=torch.float32,
        skip_reshape=True,
        skip_output_reshape=True,
        low_precision_attention=False,
    )


def plan_rows(
    slots: Sequence[Sequence[int]], known: frozenset[int]
) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Rows grouped by the sequence of binding ids that they contain, each with its positions.

    Args:
        slots: binding id per row and text token, 0 for none.
        known: ids that act in this call; all others are the host's.
    """
    groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for row, row_slots in enumerate(slots):
        bound = [(position, each) for position, each in enumerate(row_slots) if each in known]
        if bound:
            positions, ids = zip(*bound, strict=True)
            groups.setdefault(ids, {})[row] = list(positions)
    return groups


def plan_groups(
    slots: Tensor, make_subject: Mapping[int, Callable[[Rows], ActiveSubject]], device: torch.device
) -> tuple[tuple[ActiveSubject, ...], tuple[RowGroup, ...]]:
    """The subjects and row groups of one call.

    Args:
        slots: int32 `[rows, text_tokens]` on the CPU.
        make_subject: for each binding id that acts now, its subject given its rows.
    """
    planned = plan_rows(slots.tolist(), frozenset(make_subject))
    rows_of: dict[int, list[int]] = {}
    for ids, group in planned.items():
        for each in dict.fromkeys(ids):
            rows_of.setdefault(each, []).extend(group)
    rows_of = {each: sorted(rows) for each, rows in rows_of.items()}
    subjects = {each: make_subject[each](_rows(rows, device)) for each, rows in rows_of.items()}
    groups = tuple(
        RowGroup(
            rows=_rows(list(group), device),
            occurrences=tuple(
                TokenOccurrence(
                    subject=subjects[each],
                    positions=torch.tensor(
                        [positions[nth] for positions in group.values()], device=device
                    ),
                    rows_of_subject=_rows([rows_of[each].index(row) for row in group], device),
                )
                for nth, each in enumerate(ids)
            ),
        )
        for ids, group in planned.items()
    )
    return tuple(subjects.values()), groups


def _rows(rows: list[int], device: torch.device) -> Rows:
    """A run of rows as a slice, which copies nothing; else their indices."""
    if rows == list(range(rows[0], rows[-1] + 1)):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


def warn_once_logger() -> Callable[[str], None]:
    """Logs the first text only: what is wrong at one layer is wrong at each, in other numbers."""
    warned = False

    def warn(text: str) -> None:
        nonlocal warned
        if not warned:
            warned = True
            logging.warning(text)

    return warn
