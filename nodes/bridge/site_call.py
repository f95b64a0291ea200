"""One call of the UNet: what each site adds for the subjects of each row.

Everything that needs to look at numbers happened in `plan.py`, on the CPU, before the UNet runs.
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
from .sighting import Sighting, Watch

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
        presence: how much it acts at this step, in [0, 1].
    """

    binding: Binding
    keys_values: SubjectKeysValues
    sites: frozenset[AttentionSite]
    rows: Rows
    region: Tensor | None = None
    presence: float = 1.0


@dataclass(frozen=True, eq=False)
class TokenOccurrence:
    """The n-th bound token of every row in a group.

    Attributes:
        positions: among the text tokens, per row of the group.
        rows_of_subject: the group's rows among those of the subject.
        share: how much of each pixel is the subject's, `[rows of the group, 1, height, width]`,
            divided among its tokens; None where it does not compete.
    """

    subject: ActiveSubject
    positions: Tensor
    rows_of_subject: Rows
    share: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows of the batch whose prompts contain the same subjects in the same order.

    Attributes:
        row_numbers: the same rows, as numbers.
        separation: how far its competing subjects are kept apart, `[rows, 1, height, width]` in
            [0, 1]; None where nobody competes.
    """

    rows: Rows
    row_numbers: tuple[int, ...]
    occurrences: tuple[TokenOccurrence, ...]
    separation: Tensor | None = None


@dataclass(eq=False)
class SiteCall:
    """What the attention layers need to know during one call of the UNet.

    Attributes:
        foreign: other packs' patches, by site.
        watch: told of what each site has shown; None if nobody wants to know.
    """

    num_rows: int
    num_text_tokens: int
    foreign: Mapping[tuple[Any, ...], Patch]
    warn_once: Callable[[str], None]
    subjects: tuple[ActiveSubject, ...] = ()
    groups: tuple[RowGroup, ...] = ()
    watch: Watch | None = None
    _resized: dict[Any, Tensor] = field(default_factory=dict)

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
        grid = tuple(options["activations_shape"][-2:])
        for group in self.groups:
            occurrences = [each for each in group.occurrences if each.subject in values]
            if occurrences:
                tokens = [
                    self._bound_token(each, values[each.subject], group.rows, grid)
                    for each in occurrences
                ]
                rows, seen = group.rows, self._room_for_sighting(group, occurrences, grid)
                delta = replacement_delta(
                    query[rows],
                    key[rows],
                    value[rows],
                    tokens,
                    None if seen is None else seen.flatten(2),  # a view: what is written stays
                    self._on_grid(group, group.separation, grid),
                )
                out[rows] += merge_heads(delta).to(out.dtype)
                if self.watch is not None and seen is not None:
                    bindings = tuple(each.subject.binding for each in occurrences)
                    sighting = Sighting(site, group.row_numbers, bindings, seen)
                    self.watch.saw(sighting, tokens, value[rows])
        return out

    def _room_for_sighting(
        self, group: RowGroup, occurrences: Sequence[TokenOccurrence], grid: tuple[int, int]
    ) -> Tensor | None:
        if self.watch is None:
            return None
        device = occurrences[0].positions.device
        return torch.empty(len(group.row_numbers), len(occurrences), *grid, device=device)

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
        self, occurrence: TokenOccurrence, values: Tensor, rows: Rows, grid: tuple[int, int]
    ) -> BoundToken:
        binding = occurrence.subject.binding
        subject = occurrence.subject
        region = self._on_grid(subject, subject.region, grid)
        return BoundToken(
            position=occurrence.positions,
            values=values[occurrence.rows_of_subject],
            value_norm=binding.subject.encoder.config.value_norm,
            strength=binding.strength,
            token_weight=binding.token_weight,
            region=None if region is None else region[rows],
            presence=occurrence.subject.presence,
            share=self._on_grid(occurrence, occurrence.share, grid),
        )

    def _on_grid(self, owner: object, where: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
        """A map `[rows, 1, height, width]` on the grid of a site, `[rows, 1, pixels, 1]`.

        Resized once per grid and call.

        Args:
            owner: whose only map it is.
        """
        if where is None:
            return None
        if (owner, grid) not in self._resized:
            resized = functional.interpolate(where, size=grid, mode="area")
            self._resized[owner, grid] = resized.flatten(2).unsqueeze(-1)
        return self._resized[owner, grid]


def _values(subject: ActiveSubject, site: AttentionSite, query: Tensor) -> Tensor:
    """v*(q) of a subject for all rows that contain it."""
    projected = subject.keys_values.by_site[site]
    query = query[subject.rows]
    key, value = (
        split_heads(each.to(query), query.shape[1]).expand(len(query), -1, -1, -1)
        for each in (projected.key, projected.value)
    )
    return nested_values(query, key, value, _host_attention, projected.log_weights)


def _host_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The attention backend that the user chose for ComfyUI, in full precision.

    Without transformer options: a foreign override of the model's attentions is not meant for ours.
    """
    return _backend(bias)(
        query,
        key,
        value,
        query.shape[1],
        mask=bias,
        attn_precision=torch.float32,
        skip_reshape=True,
        skip_output_reshape=True,
        low_precision_attention=False,
    )


def _backend(bias: Tensor | None) -> Callable[..., Tensor]:
    attention = comfy.ldm.modules.attention
    chosen = attention.optimized_attention
    if bias is not None and chosen is attention.attention_flash:
        # It takes no bias: it would warn at every call, and compute the same as this.
        return attention.attention_pytorch
    return chosen


def warn_once_logger() -> Callable[[str], None]:
    """Logs the first text only: what is wrong at one layer is wrong at each, in other numbers."""
    warned = False

    def warn(text: str) -> None:
        nonlocal warned
        if not warned:
            warned = True
            logging.warning(text)

    return warn
