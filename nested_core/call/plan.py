"""What a plan of one call of the model holds: who acts in which rows, at which tokens.

`planning.py` makes it on the CPU. Inside the attention layers (`site.py`) nothing reads a tensor's
content back from the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional

from ..binding import Binding
from ..sites import Site
from .keys_values import SubjectKeysValues

Rows: TypeAlias = slice | Tensor
Grid: TypeAlias = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ActiveSubject:
    """A binding that acts in this call.

    Attributes:
        sites: where it acts.
        rows: every row of the batch whose prompt contains it; they share one attention call.
        region: its mask, `[rows of the call, 1 or frames, height, width]`, or None.
        presence: how much it acts at this step, in (0, 1].
    """

    binding: Binding
    keys_values: SubjectKeysValues
    sites: frozenset[Site]
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


@dataclass(frozen=True, eq=False)
class CallPlan:
    """Who acts in one call of the model. Without groups nobody does.

    Attributes:
        num_text_tokens: of each row's text, as it was sent.
        size: height and width of the latent that was planned for; None if unknown.
    """

    num_rows: int = 0
    num_text_tokens: int = 0
    size: Grid | None = None
    subjects: tuple[ActiveSubject, ...] = ()
    groups: tuple[RowGroup, ...] = ()
    _resized: dict[tuple[object, Grid], Tensor] = field(
        default_factory=dict[tuple[object, Grid], Tensor], repr=False
    )

    @cached_property
    def sites(self) -> frozenset[Site]:
        """Where some subject acts."""
        return frozenset[Site]().union(*(each.sites for each in self.subjects))

    @property
    def is_local(self) -> bool:
        """Whether it matters which part of a picture a row shows."""
        return any(each.region is not None for each in self.subjects) or any(
            group.separation is not None for group in self.groups
        )

    def finds_its_tokens(self, num_text_tokens: int) -> bool:
        """Whether every bound token has its place among that many text tokens."""
        occurrences = [each for group in self.groups for each in group.occurrences]
        return all(
            each.positions_among(num_text_tokens, self.num_text_tokens) is not None
            for each in occurrences
        )

    def on_grid(
        self, owner: object, where: Tensor | None, grid: Grid | None, frames: int = 1
    ) -> Tensor | None:
        """A map `[rows, 1 or frames, height, width]` on the grid of a site, `[rows, 1, pixels, 1]`.

        Resized once per grid and call. None where there is no map, or no grid for it. Where there is
        one for a video, all its frames have it.

        Args:
            owner: whose only map it is.
        """
        if where is None or grid is None:
            return None
        if (owner, grid) not in self._resized:
            resized = functional.interpolate(where, size=grid, mode="area")
            if resized.shape[1] != frames:
                resized = resized.mean(dim=1, keepdim=True).repeat(1, frames, 1, 1)
            self._resized[owner, grid] = resized.flatten(1)[:, None, :, None]
        return self._resized[owner, grid]
