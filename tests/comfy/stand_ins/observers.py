"""Packs that look at what stands in a UNet's options, from every place where they can."""

from __future__ import annotations

from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy.patcher_extension import WrappersMP

from .unet import blocks_of


class Observer:
    """Remembers what the options held, by where it looked: names of everything, and the tables."""

    def __init__(self):
        self.seen = []

    def _look(self, place, options):
        tables = {
            name: {key: type(each).__name__ for key, each in table.items()}
            for name, table in options.get("patches_replace", {}).items()
        }
        patches = {
            name: [type(each).__name__ for each in listed]
            for name, listed in options.get("patches", {}).items()
        }
        self.seen.append((place, sorted(map(str, options)), tables, patches))

    def on(self, model):
        """A clone that is looked at; the blocks of its UNet for good."""
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "observer", self._around)
        model.set_model_attn2_patch(self._before)
        model.set_model_attn1_replace(self._self_attention, "middle", 0)
        for _, block in blocks_of(model).values():
            block.forward = self._block(block)
        return model

    def _around(self, executor, x, timesteps, context, y, control, options, **extra):
        self._look("UNet", options)
        assert not extra, "something unknown was given to the UNet"
        return executor(x, timesteps, context, y, control, options, **extra)

    def _before(self, query, key, value, options):
        self._look("patch", options)
        return query, key, value

    def _self_attention(self, query, key, value, options):
        self._look("replace-patch", options)
        return optimized_attention(query, key, value, options["n_heads"])

    def _block(self, block):
        def forward(x, context=None, transformer_options=None):
            self._look("block", transformer_options)
            return BasicTransformerBlock.forward(block, x, context, transformer_options)

        return forward
