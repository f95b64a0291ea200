"""The value table beside whatever stands at a site: what a foreign layer, block or forward must add to.

`reference.attend` reads from the options where it is. Another pack's block says little, and its tiles
are not the batch: so this one looks at what the UNet is called with, and tells the reference.
"""

from __future__ import annotations

from dataclasses import replace

import foreign_patches
import reference
import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from comfy.patcher_extension import WrappersMP
from stand_ins.unet import blocks_of


class ValueTable:
    """What the subjects add at each site, in the call of the UNet that is under way.

    Args:
        known: the contexts that bound rows read, each with its subjects by position.
        make_tables: as of `reference.attend`.
        place_of: (row of the call, number of rows) -> what `see` takes; None: all see the whole.
        see: (subject, place) -> the subject as that place sees it, the same object each time.
    """

    def __init__(self, scene, known, make_tables=None, place_of=None, see=None):
        self._sites = [tuple(site) for site in scene.sites]
        self._known, self._make_tables = known, make_tables
        self.place_of, self._see = place_of, see
        self.options, self._context, self._shape = {}, None, ()

    def call(self, x, context, options):
        """The UNet is about to run."""
        self.options, self._context, self._shape = options, context, x.shape

    def watch(self, executor, x, timesteps, context, y=None, control=None, options=None, **extra):
        """`call`, as a wrapper around the UNet."""
        self.call(x, context, options)
        return executor(x, timesteps, context, y, control, options, **extra)

    def deltas(self, site, heads, query, key, value):
        """`[rows, pixels, inner]`."""
        options = {
            "block": site[:2],
            "block_index": site[2],
            "n_heads": heads,
            "attn_precision": None,
            "sigmas": self.options["sigmas"],
            "cond_or_uncond": self.options.get("cond_or_uncond"),
            "context_window": self.options.get("context_window"),
            "original_shape": list(self._shape),
            "activations_shape": [len(query), 1, *_grid(self._shape[-2:], query.shape[1])],
        }
        table = reference.attend(query, key, value, options, self._rows, self._make_tables)
        return table - foreign_patches.attention(query, key, value, options)

    def slots_of(self, context):
        """The subjects of a row that reads this text, by their places among the layer's keys."""
        return reference.slots_of(context, self._known)

    def _rows(self, options, num_rows):
        contexts = self._context[:num_rows]
        assert len(contexts) == num_rows
        found = [self.slots_of(context) for context in contexts]
        if self.place_of is None:
            return found
        return [
            {at: self._see(each, self.place_of(row, num_rows)) for at, each in slots.items()}
            for row, slots in enumerate(found)
        ]

    def on_patches(self, model, base=None):
        """Added by replace-patches to the host's attention, or to `base(query, key, value, options)`."""
        model = self._watching(model)
        for site, (_, block) in blocks_of(model).items():
            model.set_model_attn2_replace(self._patch(site, block.n_heads, base), *site)
        return model

    def _patch(self, site, heads, base):
        def attend(query, key, value, options):
            if base is None:
                own = optimized_attention(query, key, value, heads, transformer_options=options)
            else:
                own = base(query, key, value, options)
            return own + self.deltas(site, heads, query, key, value)

        return attend

    def behind(self, model, make):
        """Added behind the output projection of layers that run `make(layer)`."""
        model = self._watching(model)
        for site, (path, block) in blocks_of(model).items():
            model.add_object_patch(
                f"{path}.attn2.forward", self._forward(site, block.attn2, make(block.attn2))
            )
        return model

    def _forward(self, site, layer, run):
        def forward(x, context=None, value=None, mask=None, transformer_options=None):
            out = run(x, context, value, mask, transformer_options)
            value = context if value is None else value
            query, key, value = layer.to_q(x), layer.to_k(context), layer.to_v(value)
            rows = len(query)
            deltas = self.deltas(site, layer.heads, query, key[:rows], value[:rows])
            return out + deltas @ layer.to_out[0].weight.T

        return forward

    def _watching(self, model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "value table", self.watch)
        return model


def own_forward(layer):
    """ComfyUI's, as a maker of `stand_ins.layers`."""
    return lambda *args: CrossAttention.forward(layer, *args)


def _grid(size, pixels):
    height, width = size
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == pixels
    return height, width


class Cropped:
    """Subjects as a part of the picture sees them: their masks cropped. A `see` of `ValueTable`.

    Args:
        size: height and width of the whole picture in latent cells.
    """

    def __init__(self, size):
        self._size, self._seen = size, {}

    def __call__(self, subject, place):
        """`place`: picture, then rows and columns of latent cells as lists."""
        key = (id(subject), repr(place))
        if key not in self._seen:
            self._seen[key] = (subject, self._crop(subject, place))
        return self._seen[key][1]

    def _crop(self, subject, place):
        if subject.mask is None:
            return replace(subject)
        picture, rows, columns = place
        mask = subject.mask[picture % len(subject.mask)].double()
        height, width = self._size
        down, across = mask.shape[0] // height, mask.shape[1] // width
        assert (down * height, across * width) == mask.shape
        mask = mask[_cells(rows, down)][:, _cells(columns, across)]
        return replace(subject, mask=mask[None])


def _cells(numbers, factor):
    return torch.tensor([factor * each + inner for each in numbers for inner in range(factor)])
