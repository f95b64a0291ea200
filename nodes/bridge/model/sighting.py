"""What the attention layers show while the UNet is called, for whoever looks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ....nested_core.attention import BoundToken
from ....nested_core.binding import Binding
from ....nested_core.families.unet_sites import AttentionSite
from ....nested_core.maps import ValuePicture


@dataclass(frozen=True, eq=False)
class Sighting:
    """What one site has shown of the bound tokens of a group.

    Attributes:
        rows: of the batch.
        bindings: one per bound token.
        seen: A_s, mean over heads, `[rows of the group, bound tokens, height, width]`.
        values: pictures of u(q) by row and bound token, where somebody wants them.
        is_on_grid: whether height and width are known; else all pixels are in one row.
    """

    site: AttentionSite
    rows: tuple[int, ...]
    bindings: tuple[Binding, ...]
    seen: Tensor
    values: tuple[tuple[ValuePicture, ...], ...] = ()
    is_on_grid: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.seen.shape[-2:]
        return height, width


class Watch(Protocol):
    """Looks on while the UNet is called."""

    def saw(self, sighting: Sighting, tokens: Sequence[BoundToken], text_value: Tensor) -> None:
        """One site has shown this of a group.

        Args:
            tokens: the bound tokens with the values that they were given.
            text_value: `[rows of the group, heads, text_tokens, head_dim]`.
        """
        ...

    def finish(self) -> None:
        """The UNet has returned."""
        ...
