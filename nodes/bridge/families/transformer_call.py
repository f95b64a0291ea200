"""One call of a diffusion transformer: what stands around its attention, and where a call of that is.

All families reach ComfyUI's attention through one function, which the options can override. Ours
lets the host, or the override that was there, compute the layer, and adds what the subjects do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ....nested_core.attention import split_heads
from ....nested_core.call.plan import Rows
from ....nested_core.call.site import Pixels, SiteInputs, site_deltas
from ....nested_core.families.block_sites import BlockSite
from ....nested_core.families.family import Grid
from ....nested_core.families.transformers import TransformerFamily
from ....nested_core.joint import JointSoftmax, log_sum_exp
from .model_call import CALL_KEY, ModelCall, Standing, current_call, host_attention

OVERRIDE = "optimized_attention_override"  # ComfyUI's name
_BLOCKS = "dit"  # of `patches_replace`

Attend = Callable[..., Tensor]


class Attention(NamedTuple):
    """What ComfyUI's attention function is called with.

    Queries, keys and values are split into heads, `[rows, heads, tokens, head_dim]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    is_output_split: bool

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: torch.dtype | None = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        scale: float | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Attention:
        """From the arguments of a call, which come by position or by name."""
        split = (q, k, v) if skip_reshape else tuple(_of_heads(each, heads) for each in (q, k, v))
        query, key, value = split
        if scale is not None:  # everything else takes the usual one for granted
            query = query * (scale * query.shape[-1] ** 0.5)
        if key.shape[1] < heads:
            key, value = (
                each.repeat_interleave(heads // each.shape[1], dim=1) for each in (key, value)
            )
        options = transformer_options or {}
        return cls(query, key, value, mask, options, skip_output_reshape)

    @property
    def bias(self) -> Tensor | None:
        """What the mask adds to the logits, `[rows or 1, heads or 1, queries or 1, keys]`."""
        if self.mask is None:
            return None
        mask = self.mask
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
        if mask.ndim == 2:
            return mask[None, None]
        return mask[:, None] if mask.ndim == 3 else mask


def _of_heads(each: Tensor, heads: int) -> Tensor:
    """Split into heads; SD3's values are so already, tokens first."""
    return each.transpose(1, 2) if each.ndim == 4 else split_heads(each, heads)


@dataclass(eq=False)
class TransformerCall(ModelCall):
    """What the attention of a transformer needs to know during one call of it.

    Attributes:
        family: of the model.
        grid: of the call's patches.
        num_text_keys: how many keys of a joint attention come before the picture's, with padding.
        num_blocks: of the model; where blocks do not say which one is running, they are counted.
        key_norms: by site, what the model does to the keys of its text.
        is_attending: whether an attention is being computed, which is answered once.
    """

    family: TransformerFamily | None = None
    grid: Grid = field(default_factory=lambda: Grid(1, 1, 1))
    num_text_keys: int = 0
    num_blocks: int = 1
    key_norms: Mapping[BlockSite, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    is_attending: bool = False
    _block: tuple[str, int] | None = None
    _count: int = 0

    def enter(self, number: int) -> None:
        """A block begins that does not say so in the options."""
        self._block = ("", number)

    def site_of(self, attention: Attention) -> BlockSite | None:
        """The site that an attention is; None where it is none: self-attention, refiners, others."""
        family = self.family
        if family is None:
            return None
        if family.is_joint:
            return self._joint_site(family, attention)
        return self._cross_site(family, attention)

    def _joint_site(self, family: TransformerFamily, attention: Attention) -> BlockSite | None:
        num_tokens = attention.query.shape[2]
        needed = self.num_text_keys + self.grid.num_pixels
        if num_tokens != attention.key.shape[2] or num_tokens < needed:
            return None
        number = attention.options.get("block_index")
        if number is None:
            if self._block is None:
                number, self._count = self._count % self.num_blocks, self._count + 1
            else:
                number = self._block[1]
        kinds = family.kinds.kinds
        is_second = len(kinds) > 1 and attention.options.get("block_type") == "single"
        return BlockSite(kinds[is_second], int(number))

    def _cross_site(self, family: TransformerFamily, attention: Attention) -> BlockSite | None:
        """A block asks its own pixels first, and then the text."""
        number = attention.options.get("block_index")
        if number is None:
            number, self._count = self._count // 2 % self.num_blocks, self._count + 1
            is_first = self._count % 2 == 1
        else:
            is_first = self._block != ("", int(number))
            self._block = ("", int(number))
        if is_first or attention.key.shape[2] != self.plan.num_text_tokens:
            return None
        self._block = None  # whatever else the block asks is no text
        return BlockSite(family.kinds.kinds[0], int(number))

    def added_to(self, base: Tensor, site: BlockSite | None, attention: Attention) -> Tensor:
        """The host's own output of an attention, with the subjects in place of their tokens' values."""
        if self.is_over or site is None or self.family is None or not self.acts_at(site):
            return base
        self.reached.add(site)
        query, key, value = attention.query, attention.key, attention.value
        num_rows, num_text = self.plan.num_rows, self.plan.num_text_tokens
        pixels = self.family.pixel_queries(query.shape[2], self.num_text_keys, self.grid.num_pixels)
        if len(query) != num_rows or len(key) != num_rows or pixels.stop > query.shape[2]:
            self.say(
                "another node changed the shape of attention (rows, pixels) from "
                f"{(num_rows, self.grid.num_pixels)} to {(len(query), query.shape[2])}; there the "
                "subjects do not act. Remove that node, or limit it to other blocks.",
                kind="shape",
            )
            return base
        output = base if attention.is_output_split else split_heads(base, query.shape[1])
        inputs = SiteInputs(
            query[:, :, pixels],
            key[:, :, :num_text],
            value[:, :, :num_text],
            partial(_joint, attention, output, pixels, num_text),
            self.key_norms.get(site),
        )
        grid = (self.grid.height, self.grid.width)
        shown = Pixels(grid, grid, self.grid.frames)
        deltas = site_deltas(self.plan, site, inputs, shown, host_attention, self.watch)
        if not deltas:
            return base
        out = base.clone()  # a foreign override may have returned a tensor that it still uses
        for rows, delta in deltas:
            if attention.is_output_split:
                out[rows, :, pixels] += split_heads(delta, query.shape[1]).to(out.dtype)
            else:
                out[rows, pixels] += delta.to(out.dtype)
        return out


def _joint(
    attention: Attention, output: Tensor, pixels: slice, num_text: int, rows: Rows
) -> JointSoftmax:
    """The softmax of some rows' pixels over all keys: text and picture, or a text that may be long."""
    bias = attention.bias
    if bias is not None:
        bias = bias[rows] if len(bias) > 1 else bias
        bias = bias[:, :, pixels] if bias.shape[2] > 1 else bias
    return JointSoftmax(
        log_sum_exp(attention.query[rows][:, :, pixels], attention.key[rows], bias),
        output[rows][:, :, pixels],
        None if bias is None else bias[..., :num_text],
    )


class Override(Standing):
    """Stands where ComfyUI looks for another attention function, around the one that was there."""

    def __init__(self, call: TransformerCall, within: Attend | None) -> None:
        super().__init__(call)
        self.within = within

    def __call__(self, function: Attend, *args: Any, **kwargs: Any) -> Tensor:
        return _attend(self.acting, self.within, function, args, kwargs)


class BlockMark(Standing):
    """Stands around a block that does not say in the options which one it is."""

    def __init__(self, call: TransformerCall, number: int, within: Any) -> None:
        super().__init__(call)
        self.number, self.within = number, within

    def __call__(self, arguments: Any, extra: Mapping[str, Any]) -> Any:
        self.acting.enter(self.number)
        if self.within is not None:
            return self.within(arguments, extra)
        return extra["original_block"](arguments)


def _attend(
    call: ModelCall | None,
    within: Attend | None,
    function: Attend,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    base = function if within is None else partial(within, function)
    # Another pack may have put its own around ours, and ours was put around that.
    if not isinstance(call, TransformerCall) or call.is_attending:
        return base(*args, **kwargs)
    attention = Attention.of(*args, **kwargs)
    site = call.site_of(attention)
    call.is_attending = True
    try:
        out = base(*args, **kwargs)
    finally:
        call.is_attending = False
    return call.added_to(out, site, attention)


def _attend_now(within: Attend | None, function: Attend, *args: Any, **kwargs: Any) -> Tensor:
    """For compiled models: asks which call is under way when it runs."""
    return _attend(current_call.get(), within, function, args, kwargs)


class _Traced(partial[Tensor]):
    """What stands in the options of a compiled model, whichever call it is."""


def put_up(options: Mapping[str, Any], call: TransformerCall, marks_blocks: bool) -> dict[str, Any]:
    """A copy of the options in which the subjects of this call act.

    Args:
        marks_blocks: whether the model's blocks do not say which one is running.
    """
    result = {**options, OVERRIDE: Override(call, options.get(OVERRIDE)), CALL_KEY: call}
    if marks_blocks:
        replace = options.get("patches_replace", {})
        table = dict(replace.get(_BLOCKS, {}))
        for number in range(call.num_blocks):
            key = ("double_block", number)
            table[key] = BlockMark(call, number, table.get(key))
        result["patches_replace"] = {**replace, _BLOCKS: table}
    return result


def put_up_compiled(options: Mapping[str, Any], call: TransformerCall) -> dict[str, Any]:
    """A copy of the options with an override that finds the call when it runs."""
    function = cast("Attend", torch.compiler.disable(_attend_now))
    return {**options, OVERRIDE: _Traced(function, options.get(OVERRIDE))}


def take_down(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without anything of ours: some remember those of an earlier or a wider call."""
    options = dict(options)
    found = options.get(OVERRIDE)
    if isinstance(found, Override | _Traced):
        within = found.within if isinstance(found, Override) else found.args[0]
        options = {key: each for key, each in options.items() if key != OVERRIDE}
        options |= {} if within is None else {OVERRIDE: within}
    table = options.get("patches_replace", {}).get(_BLOCKS, {})
    if any(isinstance(each, BlockMark) for each in table.values()):
        kept = {
            key: each.within if isinstance(each, BlockMark) else each for key, each in table.items()
        }
        kept = {key: each for key, each in kept.items() if each is not None}
        options["patches_replace"] = {**options["patches_replace"], _BLOCKS: kept}
    return options
