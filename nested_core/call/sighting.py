"""What the attention layers show while the model is called, for whoever looks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..attention import BoundToken
from ..binding import Binding
from ..sites import Site


@dataclass(frozen=True, eq=False)
class Sighting:
    """What one site has shown of the bound tokens of a group.

    Attributes:
        rows: of the batch.
        bindings: one per bound token.
        seen: A_s, mean over heads, `[rows of the group, bound tokens, frames, height, width]`.
        is_on_grid: whether height and width are known; else all pixels are in one row.
    """

    site: Site
    rows: tuple[int, ...]
    bindings: tuple[Binding, ...]
    seen: Tensor
    is_on_grid: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.seen.shape[-2:]
        return height, width


class Watch(Protocol):
    """Looks on while the model is called."""

    def saw(self, sighting: Sighting, tokens: Sequence[BoundToken], text_value: Tensor) -> None:
        """One site has shown this of a group.

        Args:
            tokens: the bound tokens with the values that they were given; of a video, in its first
                frame.
            text_value: `[rows of the group, heads, text_tokens, head_dim]`.
        """
        ...

    def finish(self) -> None:
        """The model has returned."""
        ...
