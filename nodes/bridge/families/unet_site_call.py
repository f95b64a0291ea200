"""One call of the UNet: between ComfyUI's attention layers and the plan of who acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import comfy.ldm.modules.attention
from torch import Tensor

from ....nested_core.attention import split_heads
from ....nested_core.call.plan import Rows
from ....nested_core.call.site import Pixels, SiteInputs, site_deltas
from ....nested_core.families.family import Grid
from ....nested_core.families.unet import UNET
from ....nested_core.families.unet_sites import AttentionSite
from .model_call import ModelCall, host_attention

Patch: TypeAlias = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class Asked(NamedTuple):
    """What one attention layer is run with.

    Attributes:
        site: None where another pack's block does not say which it is.
        query, key, value: `[rows, pixels or text_tokens, inner]`.
        options: ComfyUI's, of this layer.
    """

    site: AttentionSite | None
    query: Tensor
    key: Tensor
    value: Tensor
    options: Mapping[str, Any]


def patch_at(foreign: Mapping[Any, Patch], site: AttentionSite | None) -> Patch | None:
    """The replace-patch of a site: its own, or that of the whole block."""
    return None if site is None else foreign.get(site, foreign.get((site.block, site.number)))


@dataclass(eq=False)
class SiteCall(ModelCall):
    """What the attention layers need to know during one call of the UNet.

    Attributes:
        foreign: other packs' patches, by site.
        layers: the attention modules, whose own settings stand in for options that are missing.
        beside: the sites whose layers run a forward of their own.
        given: what a layer with a forward of its own was given, until its output comes: site,
            pixels, keys' text, values'.
    """

    foreign: Mapping[Any, Patch] = field(default_factory=dict)
    layers: Mapping[AttentionSite, Any] = field(default_factory=dict)
    beside: frozenset[AttentionSite] = frozenset()
    given: tuple[AttentionSite, Tensor, Tensor, Tensor] | None = None

    def attend(self, asked: Asked) -> Tensor:
        """The host's own output of this site, with the subjects in place of their tokens' values."""
        return self.added_to(self.base(asked), asked)

    def added_to(self, base: Tensor, asked: Asked) -> Tensor:
        """The same where the host's own output is known."""
        deltas = self.deltas(asked)
        if not deltas:
            return base
        out = base.clone()  # a foreign patch may have returned a tensor that it still uses
        for rows, delta in deltas:
            split_heads(out, delta.shape[1])[rows] += delta.to(out.dtype)
        return out

    def deltas(self, asked: Asked) -> list[tuple[Rows, Tensor]]:
        """What the subjects add to this site's output in which rows, before its projection."""
        site, query, key, value, options = asked
        if self.is_over or site is None or not self.acts_at(site):
            return []
        heads = self._heads(asked)
        if heads is None:
            return []
        self.reached.add(site)
        pixels = self._pixels(query, key, options)
        if pixels is None:
            return []
        inputs = SiteInputs(
            split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)
        )
        return site_deltas(self.plan, site, inputs, pixels, host_attention, self.watch)

    def base(self, asked: Asked) -> Tensor:
        """Whatever the host and other packs' patches compute here; called once."""
        site, query, key, value, options = asked
        patch = patch_at(self.foreign, site)
        if patch is not None:
            return patch(query, key, value, options)
        precision = getattr(self._layer(site), "attn_precision", None)
        return comfy.ldm.modules.attention.optimized_attention(
            query,
            key,
            value,
            self._heads(asked),
            attn_precision=options.get("attn_precision", precision),
            transformer_options=options,
        )

    def _heads(self, asked: Asked) -> int | None:
        """As the option says, else the layer; a foreign block need not say."""
        return asked.options.get("n_heads") or getattr(self._layer(asked.site), "heads", None)

    def _layer(self, site: AttentionSite | None) -> Any:
        return None if site is None else self.layers.get(site)

    def _pixels(self, query: Tensor, key: Tensor, options: Mapping[str, Any]) -> Pixels | None:
        """Which pixels ask; None where rows or tokens are not those that were planned."""
        size = None if self.plan.size is None else Grid(1, *self.plan.size)
        grid = UNET.grid_of(query.shape[1], options.get("activations_shape"), size)
        arrived = (len(query), key.shape[1], query.shape[1])
        planned = (self.plan.num_rows, self.plan.num_text_tokens, grid.num_pixels)
        has_rows = len(query) == len(key) == self.plan.num_rows
        if not has_rows or not self.plan.finds_its_tokens(key.shape[1]) or arrived[2] != planned[2]:
            self.say(
                "another patch changed the shape of cross-attention (rows, text tokens, "
                f"pixels) from {planned} to {arrived}; there the subjects do not act. Remove that "
                "patch, or limit it to other blocks.",
                kind="shape",
            )
            return None
        shown = (grid.height, grid.width)
        told = options.get("original_shape")
        of_call = None if told is None else Grid(1, int(told[-2]), int(told[-1]))
        if UNET.is_whole(grid, of_call, size):
            return Pixels(shown, shown)
        if self.plan.is_local:
            self.say(
                "a node inside the UNet cuts the picture into tiles without saying where they lie. There "
                "the subjects act, but masks and separation rest. Remove that node to have them.",
                kind="tiles",
            )
        return Pixels(shown, None)
