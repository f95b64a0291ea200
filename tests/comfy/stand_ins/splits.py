"""Packs that split what ComfyUI gives to the UNet: by rows or into tiles, in front of it or inside.

They know what every model has, `input`, `timestep`, `c_crossattn` and `y`, and leave the rest as it is.
Each tells whoever asks what it has just cut out; real packs tell nobody.
"""

from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP

KNOWN = ("c_crossattn", "y")


class Split:
    """A model-function wrapper.

    Attributes:
        now: where the rows of the call under way come from: (row, rows and columns of latent cells).
    """

    def __init__(self):
        self.now = []

    def call(self, apply_model, arguments, rows, box=None, alter=None):
        """The UNet on these rows of the batch, and on a box (top, left, height, width) of them."""
        whole = arguments["input"]
        top, left, height, width = box or (0, 0, *whole.shape[-2:])
        down, across = list(range(top, top + height)), list(range(left, left + width))
        self.now = [(row, down, across) for row in rows]
        x = whole[rows][:, :, top : top + height, left : left + width]
        x = x if alter is None else alter(x)
        return apply_model(x, arguments["timestep"][rows], **self.conditions(arguments, rows))

    def conditions(self, arguments, rows):
        return {
            name: each[rows] if name in KNOWN else each for name, each in arguments["c"].items()
        }


class SplitsAll(Split):
    """One that splits every tensor of as many rows as the batch, whatever it may be."""

    def conditions(self, arguments, rows):
        num_rows = len(arguments["input"])
        return {
            name: each[rows] if torch.is_tensor(each) and len(each) == num_rows else each
            for name, each in arguments["c"].items()
        }


class ByRows:
    """Mixed in: parts of the batch, in an order of its own."""

    def __init__(self, parts):
        super().__init__()
        self._parts = parts

    def __call__(self, apply_model, arguments):
        out = torch.empty_like(arguments["input"])
        for rows in self._parts(len(out)):
            out[rows] = self.call(apply_model, arguments, rows)
        return out


class Rows(ByRows, Split):
    pass


class RowsOfAll(ByRows, SplitsAll):
    pass


PARTS = {
    "one by one": lambda n: [[row] for row in range(n)],
    "reversed": lambda n: [list(reversed(range(n)))],
    "halves": lambda n: [list(range(n // 2)), list(range(n // 2, n))],
    "halves, last first": lambda n: [list(range(n // 2, n)), list(range(n // 2))],
    "mixed": lambda n: [list(range(0, n, 2)), list(range(1, n, 2))[::-1]],
}


class Tiles(Split):
    """Overlapping tiles of one or several sizes, one after the other.

    Args:
        boxes: (top, left, height, width) in latent cells.
        alter: of a tile's content, on its way in; `back` on its way out.
    """

    def __init__(self, boxes, alter=None, back=None):
        super().__init__()
        self._boxes, self._alter, self._back = boxes, alter, back

    def __call__(self, apply_model, arguments):
        whole = arguments["input"]
        out, count = torch.zeros_like(whole), torch.zeros_like(whole)
        for box in self._boxes:
            top, left, height, width = box
            tile = self.call(apply_model, arguments, list(range(len(whole))), box, self._alter)
            tile = tile if self._back is None else self._back(tile)
            out[:, :, top : top + height, left : left + width] += tile
            count[:, :, top : top + height, left : left + width] += 1
        return out / count


class TilesInOneBatch(Split):
    """All tiles, of one size, behind one another."""

    def __init__(self, boxes, by_row=False):
        super().__init__()
        self._boxes, self._by_row = boxes, by_row

    def __call__(self, apply_model, arguments):
        whole = arguments["input"]
        cuts = [(row, box) for box in self._boxes for row in range(len(whole))]
        cuts = sorted(cuts, key=lambda cut: cut[0]) if self._by_row else cuts
        self.now = [
            (row, list(range(top, top + height)), list(range(left, left + width)))
            for row, (top, left, height, width) in cuts
        ]
        rows = [row for row, _ in cuts]
        tiles = torch.stack([_cut(whole[row], box) for row, box in cuts])
        tiles = apply_model(tiles, arguments["timestep"][rows], **self.conditions(arguments, rows))
        out, count = torch.zeros_like(whole), torch.zeros_like(whole)
        for (row, box), tile in zip(cuts, tiles, strict=True):
            _cut(out[row], box).add_(tile)
            _cut(count[row], box).add_(1)
        return out / count


def _cut(picture, box):
    top, left, height, width = box
    return picture[:, top : top + height, left : left + width]


SAME_SIZE = [(0, 0, 16, 8), (0, 4, 16, 8)]
SEVERAL_SIZES = [(0, 0, 8, 12), (6, 0, 10, 8), (6, 4, 10, 8)]


class Inside:
    """A wrapper where the UNet itself is called, behind everything that ComfyUI tells.

    Attributes:
        now: as of `Split`.
    """

    def __init__(self):
        self.now = []

    def on(self, model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "tiles", self)
        return model


class TilesInside(Inside):
    """One after the other.

    Args:
        alter: of a tile's content, on its way in; `back` on its way out.
    """

    def __init__(self, boxes, alter=lambda x: x, back=lambda x: x):
        super().__init__()
        self._boxes, self._alter, self._back = boxes, alter, back

    def __call__(self, executor, x, timesteps, context, y, control, options, **extra):
        out, count = torch.zeros_like(x), torch.zeros_like(x)
        for top, left, height, width in self._boxes:
            down, across = slice(top, top + height), slice(left, left + width)
            self.now = [
                (row, list(range(16))[down], list(range(12))[across]) for row in range(len(x))
            ]
            tile = self._alter(x[..., down, across])
            tile = executor(tile, timesteps, context, y, control, options, **extra)
            out[..., down, across] += self._back(tile)
            count[..., down, across] += 1
        return out / count


class TilesInsideInOneBatch(Inside):
    """Behind one another, by tile or by row of the batch."""

    def __init__(self, boxes, by_row=False):
        super().__init__()
        self._boxes, self._by_row = boxes, by_row

    def __call__(self, executor, x, timesteps, context, y, control, options, **extra):
        cuts = [(row, box) for box in self._boxes for row in range(len(x))]
        cuts = sorted(cuts, key=lambda cut: cut[0]) if self._by_row else cuts
        self.now = [
            (row, list(range(top, top + height)), list(range(left, left + width)))
            for row, (top, left, height, width) in cuts
        ]
        rows = [row for row, _ in cuts]
        tiles = torch.stack([_cut(x[row], box) for row, box in cuts])
        y = None if y is None else y[rows]
        tiles = executor(tiles, timesteps[rows], context[rows], y, control, options, **extra)
        out, count = torch.zeros_like(x), torch.zeros_like(x)
        for (row, box), tile in zip(cuts, tiles, strict=True):
            _cut(out[row], box).add_(tile)
            _cut(count[row], box).add_(1)
        return out / count


class ReversedInside(Inside):
    """The rows of the batch the other way round."""

    def __call__(self, executor, x, timesteps, context, y, control, options, **extra):
        self.now = [(row, list(range(16)), list(range(12))) for row in reversed(range(len(x)))]
        y = None if y is None else y.flip(0)
        out = executor(x.flip(0), timesteps.flip(0), context.flip(0), y, control, options, **extra)
        return out.flip(0)
