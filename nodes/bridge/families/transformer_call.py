"""One call of a diffusion transformer: which of its attentions are sites, and what happens there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ....nested_core.call.plan import Rows
from ....nested_core.call.site import Pixels, SiteInputs, site_deltas
from ....nested_core.families.block_sites import BlockSite
from ....nested_core.families.family import Grid
from ....nested_core.families.transformers import TransformerFamily
from ....nested_core.joint import JointSoftmax, log_sum_exp
from .attention_call import Attention
from .model_call import ModelCall, host_attention


@dataclass(eq=False)
class TransformerCall(ModelCall):
    """What the attention of a transformer needs to know during one call of it.

    Attributes:
        family: of the model.
        grid: of the call's patches.
        first_text_key: where this prompt's text begins among the keys.
        num_text_keys: how many keys of a joint attention come before the picture's, with padding.
        first_pixel: where the picture begins among the queries; from their end where negative.
        num_blocks: of the model; where blocks do not say which one is running, they are counted.
        calls_before_text: how many other attentions each block asks for first, where text and pixels
            are not joined.
        repeats: whether whatever a block asks for after the text is the same anew, for somebody who
            runs it again. Else it is a part of the model that is no site.
        key_norms: by site, what the model does to the keys of its text.
        is_attending: whether an attention is being computed, which is answered once.
    """

    family: TransformerFamily | None = None
    grid: Grid = field(default_factory=lambda: Grid(1, 1, 1))
    first_text_key: int = 0
    num_text_keys: int = 0
    first_pixel: int = 0
    num_blocks: int = 1
    calls_before_text: int = 1
    repeats: bool = True
    key_norms: Mapping[BlockSite, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    is_attending: bool = False
    _block: int | None = None
    _count: int = 0

    def enter(self, number: int) -> None:
        """A block begins that does not say so in the options."""
        self._block = number

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
        # Keys may be more: somebody keeps those of reference pictures from an earlier step.
        needed = self.num_text_keys + self.grid.num_pixels
        if num_tokens > attention.key.shape[2] or num_tokens < needed:
            return None
        number = attention.options.get("block_index")
        if number is None:
            if self._block is None:
                number, self._count = self._count % self.num_blocks, self._count + 1
            else:
                number = self._block
        kinds = family.kinds.kinds
        is_second = len(kinds) > 1 and attention.options.get("block_type") == "single"
        return BlockSite(kinds[is_second], int(number))

    def _cross_site(self, family: TransformerFamily, attention: Attention) -> BlockSite | None:
        """A block asks its own pixels first, some then another picture, and then the text."""
        number = attention.options.get("block_index")
        calls = self.calls_before_text + 1
        if number is None:
            number, nth = divmod(self._count, calls)
            number, self._count = number % self.num_blocks, self._count + 1
        else:
            if number != self._block:
                self._block, self._count = int(number), 0
            nth, self._count = self._count, self._count + 1
            nth = nth % calls if self.repeats else nth
        if nth != self.calls_before_text or attention.key.shape[2] != self.plan.num_text_tokens:
            return None
        return BlockSite(family.kinds.kinds[0], int(number))

    def output(
        self, attention: Attention, compute: Callable[[], Tensor], is_pytorch: bool
    ) -> Tensor:
        """What an attention gives, with the subjects in place of their tokens' values.

        Args:
            compute: the host's own output.
            is_pytorch: whether PyTorch's kernel may stand in for the host's function. It also tells
                the softmax's denominators, which we had to compute again else.
        """
        site = self.site_of(attention)
        if self.is_over or site is None or not self.acts_at(site):
            return self._of_host(compute)
        self.reached.add(site)
        if not self._is_of_plan(attention):
            return self._of_host(compute)
        may_fuse = is_pytorch and self._acts_in_all_rows(site)
        fused = attention.fused() if may_fuse else None
        base, log_sums = (self._of_host(compute), None) if fused is None else fused
        deltas = self._deltas(attention, site, base, log_sums)
        changed = sum(int(delta.flatten(1).any(dim=1).sum()) for _, delta in deltas) if fused else 0
        if fused and changed < self.plan.num_rows:
            base = self._of_host(compute)  # a row without any effect is the host's to the last bit
        if not deltas:
            return base
        out = base.clone()  # a foreign override may have returned a tensor that it still uses
        pixels = self._pixels(attention)
        for rows, delta in deltas:
            attention.of_heads(out)[rows, :, pixels] += delta.to(out.dtype)
        return out

    def _of_host(self, compute: Callable[[], Tensor]) -> Tensor:
        self.is_attending = True
        try:
            return compute()
        finally:
            self.is_attending = False

    def _pixels(self, attention: Attention) -> slice:
        first = self.first_pixel % attention.query.shape[2]
        return slice(first, first + self.grid.num_pixels)

    def _acts_in_all_rows(self, site: BlockSite) -> bool:
        acting = (
            len(group.row_numbers)
            for group in self.plan.groups
            if any(site in each.subject.sites for each in group.occurrences)
        )
        return sum(acting) == self.plan.num_rows

    def _is_of_plan(self, attention: Attention) -> bool:
        """Whether rows and pixels are those that were planned for; says it where they are not."""
        query, num_rows = attention.query, self.plan.num_rows
        if len(query) == len(attention.key) == num_rows:
            if self._pixels(attention).stop <= query.shape[2]:
                return True
        self.say(
            "another node changed the shape of attention (rows, pixels) from "
            f"{(num_rows, self.grid.num_pixels)} to {(len(query), query.shape[2])}; there the "
            "subjects do not act. Remove that node, or limit it to other blocks.",
            kind="shape",
        )
        return False

    def _deltas(
        self, attention: Attention, site: BlockSite, base: Tensor, log_sums: Tensor | None
    ) -> list[tuple[Rows, Tensor]]:
        pixels = self._pixels(attention)
        text = slice(self.first_text_key, self.first_text_key + self.plan.num_text_tokens)
        inputs = SiteInputs(
            attention.query[:, :, pixels],
            attention.key[:, :, text],
            attention.value[:, :, text],
            partial(_joint, attention, attention.of_heads(base), log_sums, pixels, text),
            self.key_norms.get(site),
        )
        grid = (self.grid.height, self.grid.width)
        shown = Pixels(grid, grid, self.grid.frames)
        return site_deltas(self.plan, site, inputs, shown, host_attention, self.watch)


def _joint(
    attention: Attention,
    output: Tensor,
    log_sums: Tensor | None,
    pixels: slice,
    text: slice,
    rows: Rows,
) -> JointSoftmax:
    """The softmax of some rows' pixels over all keys: text and picture, or a text that may be long."""
    bias = attention.bias
    if bias is not None:
        bias = bias[rows] if len(bias) > 1 else bias
        bias = bias[:, :, pixels] if bias.shape[2] > 1 else bias
    if log_sums is None:
        queries = attention.query[rows][:, :, pixels]
        log_sums = log_sum_exp(queries, attention.key[rows], bias)
    else:
        log_sums = log_sums[rows][:, :, pixels]
    return JointSoftmax(
        log_sums, output[rows][:, :, pixels], None if bias is None else bias[..., text]
    )
