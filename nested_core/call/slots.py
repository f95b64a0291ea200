"""The bound tokens of a row, as a slot map writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Slot(NamedTuple):
    """A bound text token.

    Attributes:
        position: of its key among the text tokens.
        is_doubled: whether the context says every token twice, its key and then its value, as
            packs for negative weights do; inside the layer the token is at half the position.
        is_negated: whether that value is the negative of the text's.
    """

    binding_id: int
    position: int
    is_doubled: bool = False
    is_negated: bool = False


def read_slots(row: Sequence[int]) -> list[Slot]:
    """The bound tokens of one row of a slot map, in their order.

    A doubled token is written as its negative id at the key's even place; behind it, at the value's,
    stands the negative id again, or the id itself where the value is negated.
    """
    slots: list[Slot] = []
    for position, number in enumerate(row):
        if number < 0 and position % 2 == 0:
            slots.append(Slot(-number, position, True, row[position + 1] > 0))
        elif number > 0 and not (slots and slots[-1].is_doubled and position % 2):
            slots.append(Slot(number, position))
    return slots
