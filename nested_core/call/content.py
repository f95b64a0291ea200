"""Texts and pixels found again by what they hold, where nobody says which they are.

This looks at the device: it is for what another pack has moved.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor

# Noise repeats nowhere, so a few places are enough to try; an even picture is found nowhere.
_MAX_PLACES = 16

Cut: TypeAlias = tuple[int, int, int]  # row of what was sent, top, left


def rows_that_read(sent: Tensor, context: Tensor) -> Tensor:
    """Which rows of a context are this text, perhaps several times over; bool `[rows]` on the CPU."""
    length = sent.shape[1]
    if context.shape[1] % length or context.shape[2] != sent.shape[2]:
        return torch.zeros(len(context), dtype=torch.bool)
    repeats = context.shape[1] // length
    matches = torch.zeros(len(context), dtype=torch.bool)
    for each in sent.to(context):
        same = context == each.repeat(repeats, 1)
        matches |= same.flatten(1).all(dim=1).cpu()
    return matches


def where_cut(sent: Tensor, tiles: Tensor) -> list[list[Cut]]:
    """Where in what was sent each tile was cut out; several places where they look alike."""
    # The frames of a video are cut alike, as channels are.
    sent, tiles = (each.flatten(1, 2) if each.ndim == 5 else each for each in (sent, tiles))
    height, width = tiles.shape[-2:]
    cuts: list[list[Cut]] = [[] for _ in tiles]
    if tiles.ndim == sent.ndim == 5:  # all frames of a video are cut alike
        sent, tiles = sent.flatten(1, 2), tiles.flatten(1, 2)
    if tiles.ndim != 4 or sent.ndim != 4 or tiles.shape[1] != sent.shape[1]:
        return cuts
    if height > sent.shape[-2] or width > sent.shape[-1]:
        return cuts
    sent = sent.to(tiles)
    corners = sent[:, :, : sent.shape[-2] - height + 1, : sent.shape[-1] - width + 1]
    hits = rows_of_numbers((corners[None] == tiles[:, None, :, :1, :1]).all(dim=2).nonzero())
    if len(hits) > _MAX_PLACES * len(tiles):
        return cuts
    for tile, row, top, left in hits:
        cut = sent[row, :, top : top + height, left : left + width]
        if torch.equal(cut, tiles[tile]):
            cuts[tile].append((row, top, left))
    return cuts


def rows_of_numbers(table: Tensor) -> list[list[int]]:
    """A table of integers as Python's; this waits for the device."""
    return cast("list[list[int]]", table.tolist())  # pyright: ignore[reportUnknownMemberType]
