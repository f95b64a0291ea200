"""Where things are in a UNet, for stand-ins that reach into it."""

from __future__ import annotations

from comfy.ldm.modules.attention import SpatialTransformer


def blocks_of(model):
    """(block, number, index) -> (path inside the model, transformer block)."""
    unet = model.model.diffusion_model
    levels = {
        "input": list(enumerate(unet.input_blocks)),
        "middle": [(0, unet.middle_block)],
        "output": list(enumerate(unet.output_blocks)),
    }
    found = {}
    for name, of_level in levels.items():
        for number, level in of_level:
            path = "middle_block" if name == "middle" else f"{name}_blocks.{number}"
            for place, layer in enumerate(level):
                if isinstance(layer, SpatialTransformer):
                    for index, block in enumerate(layer.transformer_blocks):
                        where = f"diffusion_model.{path}.{place}.transformer_blocks.{index}"
                        found[name, number, index] = (where, block)
    return found
