"""One call of the UNet: what each site adds for the subjects of each row.

Everything that needs to look at numbers happened in `plan.py`, on the CPU, before the UNet runs.
Inside the attention layers nothing reads a tensor's content back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import comfy.ldm.modules.attention
import torch
from torch import Tensor
from torch.nn import functional

from ....nested_core.attention import (
    BoundToken,
    merge_heads,
    nested_values,
    replacement_delta,
    split_heads,
)
from ....nested_core.binding import Binding
from ....nested_core.families.unet_sites import AttentionSite
from .kv_cache import SubjectKeysValues
from .sighting import Sighting, Watch

Patch: TypeAlias = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
Rows: TypeAlias = slice | Tensor
Grid: TypeAlias = tuple[int, int]


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
        is_doubled: whether the positions are those of a text that says every token twice, its key
            and its value; a patch of the layer's inputs makes one of the two.
        is_negated: whether the text's value is negated, and with it the subject's.
    """

    subject: ActiveSubject
    positions: Tensor
    rows_of_subject: Rows
    share: Tensor | None = None
    is_doubled: bool = False
    is_negated: bool = False

    def positions_among(self, num_tokens: int, planned: int) -> Tensor | None:
        """Where the token is among the text tokens that arrive; None where nobody can tell."""
        if num_tokens == planned:
            return self.positions
        if self.is_doubled and num_tokens * 2 == planned:
            return self.positions // 2
        return None


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
        say: tells the user a sentence, once for each kind in a sampling.
        watch: told of what each site has shown; None if nobody wants to know.
        size: height and width of the latent that the UNet was planned for; None if unknown.
        layers: the attention modules, whose own settings stand in for options that are missing.
        beside: the sites whose layers run a forward of their own.
        given: what such a layer was given, until its output comes: site, pixels, keys' text, values'.
        reached: the sites that were run, added to by this call.
        is_over: what is left of this call in somebody's memory acts no more.
    """

    num_rows: int
    num_text_tokens: int
    foreign: Mapping[tuple[Any, ...], Patch]
    say: Callable[..., None]
    subjects: tuple[ActiveSubject, ...] = ()
    groups: tuple[RowGroup, ...] = ()
    watch: Watch | None = None
    size: Grid | None = None
    layers: Mapping[AttentionSite, Any] = field(default_factory=dict)
    beside: frozenset[AttentionSite] = frozenset()
    given: tuple[AttentionSite, Tensor, Tensor, Tensor] | None = None
    reached: set[AttentionSite] = field(default_factory=set)
    is_over: bool = False
    _resized: dict[Any, Tensor] = field(default_factory=dict)

    def acts_at(self, site: AttentionSite) -> bool:
        """Whether some subject is to act there."""
        return any(site in subject.sites for subject in self.subjects)

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteCall:
        # It is a moment, of which there is one: packs copy options with all that is in them.
        return self

    def attend(
        self,
        site: AttentionSite | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """The host's own output of this site, with the subjects in place of their tokens' values."""
        base = self.base(site, query, key, value, options)
        return self.added_to(base, site, query, key, value, options)

    def added_to(
        self,
        base: Tensor,
        site: AttentionSite | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """The same where the host's own output is known."""
        deltas = self.deltas(site, query, key, value, options)
        if not deltas:
            return base
        out = base.clone()  # a foreign patch may have returned a tensor that it still uses
        for rows, delta in deltas:
            out[rows] += delta.to(out.dtype)
        return out

    def deltas(
        self,
        site: AttentionSite | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> list[tuple[Rows, Tensor]]:
        """What the subjects add to this site's output in which rows, before its projection.

        Args:
            query, key, value: `[rows, pixels or text_tokens, inner]`.
        """
        if self.is_over or site is None or not self.acts_at(site):
            return []
        heads = self._heads(site, options)
        if heads is None:
            return []
        self.reached.add(site)
        place = self._place(query, key, options)
        if place is None:
            return []
        grid, where = place
        query, key, value = (split_heads(each, heads) for each in (query, key, value))
        values = {
            subject: _values(subject, site, query)
            for subject in self.subjects
            if site in subject.sites
        }
        found: list[tuple[Rows, Tensor]] = []
        for group in self.groups:
            occurrences = [each for each in group.occurrences if each.subject in values]
            if occurrences:
                rows, seen = group.rows, self._room_for_sighting(group, occurrences, grid)
                tokens = [
                    self._bound_token(each, values[each.subject], rows, key.shape[2], where)
                    for each in occurrences
                ]
                delta = replacement_delta(
                    query[rows],
                    key[rows],
                    value[rows],
                    tokens,
                    None if seen is None else seen.flatten(2),  # a view: what is written stays
                    self._on_grid(group, group.separation, where),
                )
                found.append((rows, merge_heads(delta)))
                if self.watch is not None and seen is not None:
                    bindings = tuple(each.subject.binding for each in occurrences)
                    sighting = Sighting(
                        site, group.row_numbers, bindings, seen, is_on_grid=where is not None
                    )
                    self.watch.saw(sighting, tokens, value[rows])
        return found

    def _room_for_sighting(
        self, group: RowGroup, occurrences: Sequence[TokenOccurrence], grid: Grid
    ) -> Tensor | None:
        if self.watch is None:
            return None
        device = occurrences[0].positions.device
        return torch.empty(len(group.row_numbers), len(occurrences), *grid, device=device)

    def base(
        self,
        site: AttentionSite | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """Whatever the host and other packs' patches compute here; called once."""
        patch = None
        if site is not None:
            patch = self.foreign.get(tuple(site), self.foreign.get((site.block, site.number)))
        if patch is not None:
            return patch(query, key, value, options)  # type: ignore[arg-type]
        layer = self.layers.get(site) if site is not None else None
        return comfy.ldm.modules.attention.optimized_attention(
            query,
            key,
            value,
            options.get("n_heads") or layer.heads,  # type: ignore[union-attr]
            attn_precision=options.get("attn_precision", getattr(layer, "attn_precision", None)),
            transformer_options=options,
        )

    def _heads(self, site: AttentionSite, options: Mapping[str, Any]) -> int | None:
        """As the option says, else the layer; a foreign block need not say."""
        return options.get("n_heads") or getattr(self.layers.get(site), "heads", None)

    def _place(
        self, query: Tensor, key: Tensor, options: Mapping[str, Any]
    ) -> tuple[Grid, Grid | None] | None:
        """Height and width of the pixels, and of the part of the pictures that they show.

        None where rows or tokens are not those that were planned. The second is None where nobody
        knows which part it is, and then the first may be all pixels in one row.
        """
        pixels = query.shape[1]
        told = options.get("activations_shape")
        grid = None if told is None else (int(told[-2]), int(told[-1]))
        if grid is None:
            grid = self._grid_of(pixels)
        if query.shape[0] != self.num_rows or not self._has_text(key) or math.prod(grid) != pixels:
            self._say_shape(query, key, grid)
            return None
        return grid, grid if self._is_whole(grid, options) else None

    def _has_text(self, key: Tensor) -> bool:
        num_tokens, planned = key.shape[1], self.num_text_tokens
        if key.shape[0] != self.num_rows:
            return False
        occurrences = [each for group in self.groups for each in group.occurrences]
        return all(each.positions_among(num_tokens, planned) is not None for each in occurrences)

    def _say_shape(self, query: Tensor, key: Tensor, grid: Grid) -> None:
        found = (query.shape[0], key.shape[1], query.shape[1])
        planned = (self.num_rows, self.num_text_tokens, math.prod(grid))
        self.say(
            "another patch changed the shape of cross-attention (rows, text tokens, "
            f"pixels) from {planned} to {found}; there the subjects do not act. Remove that patch, "
            "or limit it to other blocks.",
            kind="shape",
        )

    def _grid_of(self, pixels: int) -> Grid:
        """The grid of a layer that does not tell it: of those that halving gives, the one that fits."""
        grids = () if self.size is None else _halved(self.size)
        return next((grid for grid in grids if math.prod(grid) == pixels), (1, pixels))

    def _is_whole(self, grid: Grid, options: Mapping[str, Any]) -> bool:
        """Whether the layer sees all of what was planned, not a tile that somebody cut inside."""
        if self.size is None:
            return True
        told = options.get("original_shape")
        arrived = None if told is None else (int(told[-2]), int(told[-1]))
        if arrived == self.size or (arrived is None and grid in _halved(self.size)):
            return True
        if any(each.region is not None for each in self.subjects) or any(
            group.separation is not None for group in self.groups
        ):
            self.say(
                "a node inside the UNet cuts the picture into tiles without saying where they lie. There "
                "the subjects act, but masks and separation rest. Remove that node to have them.",
                kind="tiles",
            )
        return False

    def _bound_token(
        self,
        occurrence: TokenOccurrence,
        values: Tensor,
        rows: Rows,
        num_text_tokens: int,
        grid: Grid | None,
    ) -> BoundToken:
        subject = occurrence.subject
        binding = subject.binding
        region = self._on_grid(subject, subject.region, grid)
        position = occurrence.positions_among(num_text_tokens, self.num_text_tokens)
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
            share=self._on_grid(occurrence, occurrence.share, grid),
        )

    def _on_grid(self, owner: object, where: Tensor | None, grid: Grid | None) -> Tensor | None:
        """A map `[rows, 1, height, width]` on the grid of a site, `[rows, 1, pixels, 1]`.

        Resized once per grid and call. None where there is no map, or no grid for it.

        Args:
            owner: whose only map it is.
        """
        if where is None or grid is None:
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


def _halved(size: Grid) -> list[Grid]:
    """The grids of a UNet's layers, finest first: every downsampler halves and rounds up."""
    grids = [size]
    while max(grids[-1]) > 1:
        height, width = grids[-1]
        grids.append((-(-height // 2), -(-width // 2)))
    return grids
