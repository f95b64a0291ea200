"""Which pictures, and which part of them, a latent shows, and where each row of it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional

from .content import rows_of_numbers, where_cut

PICTURES, _HEIGHT, _WIDTH = 0, 2, 3  # dimensions of a latent
_FRAMES = 2  # of a video's

# Dimension of the latent, indices along it, size of the whole.
Window: TypeAlias = tuple[int, tuple[int, ...], int]


class Place(NamedTuple):
    """Where a row of the batch lies, in latent cells.

    Attributes:
        picture: of the batch.
        conditioning: a number of its prompt's own, the same at every step.
        top, left, height, width: its area; without one, the whole picture.
        window: a number of the rows and columns that it shows, where these are not one piece; else 0.
        first_frame: of a video, the first that it shows.
    """

    picture: int
    conditioning: int
    top: int
    left: int
    height: int
    width: int
    picture_height: int
    picture_width: int
    window: int = 0
    first_frame: int = 0

    @classmethod
    def unknown(cls, conditioning: int) -> Place:
        """Of no size, so that no latent fits it."""
        return cls(0, conditioning, 0, 0, 0, 0, 0, 0)

    @classmethod
    def table(cls, places: Sequence[Place]) -> Tensor:
        """Places as int32 `[rows, 10]` on the CPU: what hosts batch, repeat and split are tensors."""
        return torch.tensor(places, dtype=torch.int32)

    @classmethod
    def of_table(cls, table: Tensor) -> tuple[Place, ...]:
        """The places that a table holds."""
        return tuple(cls(*row) for row in rows_of_numbers(table))


@dataclass(frozen=True)
class Frame:
    """The part of a batch of pictures that a latent shows.

    Attributes:
        height, width: of the latent.
        num_rows: of the latent.
        pictures: which picture each row shows; None: one after the other.
        rows, columns: which rows or columns of the whole pictures the latent has; None: all.
        frames: which frames of the whole videos it has; None: all.
        picture_height, picture_width: of the whole pictures, in latent cells.
        is_known: False where the latent is a part of the pictures and nobody can tell which.
    """

    num_rows: int
    height: int
    width: int
    picture_height: int
    picture_width: int
    pictures: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    frames: tuple[int, ...] | None = None
    is_known: bool = True

    @classmethod
    def of_call(
        cls, latent: Tensor, window: Window | None, pictures: Tensor | None = None
    ) -> Frame:
        """The frame of a latent `[rows, channels, height, width]`.

        Args:
            window: which part of the pictures it is, as the host says; None: it says nothing.
            pictures: all of them at this step, in which an unknown window is looked for; None: unknown.
        """
        told = cls._told(latent, window)
        parts = (told.pictures, told.rows, told.columns, told.frames)
        if (
            any(each is not None for each in parts)
            or pictures is None
            or pictures.shape == latent.shape
        ):
            return told
        return cls._found(latent, pictures)

    @classmethod
    def _found(cls, latent: Tensor, pictures: Tensor) -> Frame:
        height, width = latent.shape[-2:]
        whole_height, whole_width = pictures.shape[-2:]
        frame = cls(len(latent), height, width, whole_height, whole_width)
        cuts = where_cut(pictures, latent)
        corners = {each[1:] for of_row in cuts for each in of_row}
        if len(corners) != 1 or any(len(of_row) != 1 for of_row in cuts):
            return replace(frame, is_known=False)
        ((top, left),) = corners
        return replace(
            frame,
            pictures=tuple(row for ((row, _, _),) in cuts),
            rows=tuple(range(top, top + height)) if height != whole_height else None,
            columns=tuple(range(left, left + width)) if width != whole_width else None,
        )

    @classmethod
    def _told(cls, latent: Tensor, window: Window | None) -> Frame:
        num_rows, (height, width) = len(latent), latent.shape[-2:]
        whole = cls(num_rows, height, width, height, width)
        if window is None:
            return whole
        dim, indices, total = window
        # A window that has nothing to do with this latent, as one left behind by an earlier call.
        if dim >= latent.ndim or latent.shape[dim] != len(indices):
            return whole
        if dim == PICTURES:
            return cls(num_rows, height, width, height, width, pictures=indices)
        if dim == _FRAMES and latent.ndim == 5:
            return cls(num_rows, height, width, height, width, frames=indices)
        if dim == _HEIGHT and latent.ndim == 4:
            return cls(num_rows, height, width, total, width, rows=indices)
        if dim == _WIDTH and latent.ndim == 4:
            return cls(num_rows, height, width, height, total, columns=indices)
        return whole

    @property
    def is_connected(self) -> bool:
        """Whether the latent is one piece of the pictures; a window that wraps around is not."""
        runs = (each for each in (self.rows, self.columns) if each is not None)
        return all(each == tuple(range(each[0], each[0] + len(each))) for each in runs)

    def picture(self, row: int) -> int:
        """The picture that a row shows."""
        return row if self.pictures is None else self.pictures[row % len(self.pictures)]

    def place(self, conditioning: int, row: int, box: Sequence[int], first_frame: int = 0) -> Place:
        """Where a box (height, width, top, left) of a row lies in its whole picture.

        Args:
            first_frame: of the box, counted in the latent.
        """
        height, width, top, left = box
        if not self.is_known:
            return Place.unknown(conditioning)
        window = (
            0 if self.is_connected else crc32(repr((self.rows, self.columns)).encode()) >> 1 | 1
        )
        return Place(
            self.picture(row),
            conditioning,
            top + (self.rows[0] if self.rows else 0),
            left + (self.columns[0] if self.columns else 0),
            height,
            width,
            self.picture_height,
            self.picture_width,
            window,
            first_frame if self.frames is None else self.frames[first_frame],
        )

    def of_masks(self, masks: Tensor, num_rows: int) -> Tensor:
        """Masks `[pictures, 1 or frames, height, width]` of whole pictures as each row sees them."""
        masks = masks[[self.picture(row) % len(masks) for row in range(num_rows)]]
        if self.frames is not None and masks.shape[1] > 1:
            masks = masks[:, [each % masks.shape[1] for each in self.frames]]
        for dim, indices in ((_HEIGHT, self.rows), (_WIDTH, self.columns)):
            if indices is not None:
                masks = self._selected(masks, dim, indices)
        return masks

    def _selected(self, masks: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
        """Rows or columns of masks that are as fine as the cells of the latent, or a multiple of it."""
        total = self.picture_height if dim == _HEIGHT else self.picture_width
        if masks.shape[dim] % total:
            size = list(masks.shape[-2:])
            size[dim - _HEIGHT] = total
            masks = functional.interpolate(masks, size=size, mode="area")
        fine = masks.shape[dim] // total
        cells = [fine * each + part for each in indices for part in range(fine)]
        return masks.index_select(dim, torch.tensor(cells, device=masks.device))


def cropped(mask: Tensor, size: tuple[int, int], box: Sequence[int]) -> Tensor:
    """The part of a mask `[pictures, 1 or frames, height, width]` in a box of latent cells.

    Args:
        size: height and width of the whole in cells.
        box: height, width, top and left in cells.
    """
    height, width, top, left = box
    if (height, width) == tuple(size):
        return mask  # as fine as it is: each layer makes it its own grid's
    if any(have % want for have, want in zip(mask.shape[2:], size, strict=True)):
        mask = functional.interpolate(mask, size=size, mode="area")
    down, across = mask.shape[2] // size[0], mask.shape[3] // size[1]
    mask = mask.narrow(2, top * down, height * down)
    return mask.narrow(3, left * across, width * across)
