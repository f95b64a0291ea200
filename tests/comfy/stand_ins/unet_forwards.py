"""Packs that stand in front of the UNet and run its blocks by themselves.

All are model-function wrappers, which ComfyUI calls in the UNet's place: the UNet's own forward and
what wraps it never run. Some keep things between calls, as step caches do.
"""

from __future__ import annotations

import copy

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from comfy.patcher_extension import WrappersMP


def run_blocks(unet, x, timesteps, context, y, options, control=None, deep=None):
    """All blocks in their order; with `deep`, only the outer ones around what was kept of the inner.

    Returns:
        The output, and what the last but one output block was given.
    """
    options["original_shape"] = list(x.shape)
    options["transformer_index"] = 0
    patches = options.get("patches", {})
    embedded = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
    if y is not None:
        embedded = embedded + unet.label_emb(y)
    hidden, skips, outer = x, [], 2
    num_in, num_out = len(unet.input_blocks), len(unet.output_blocks)
    for number in range(num_in if deep is None else outer):
        options["block"] = ("input", number)
        hidden = _block(unet.input_blocks[number], hidden, embedded, context, options)
        hidden = apply_control(hidden, control, "input")
        for patch in patches.get("input_block_patch", ()):
            hidden = patch(hidden, options)
        skips.append(hidden)
    if deep is None:
        options["block"] = ("middle", 0)
        hidden = _block(unet.middle_block, hidden, embedded, context, options)
    kept = deep
    for number in range(0 if deep is None else num_out - outer, num_out):
        if number == num_out - outer:
            kept = hidden if deep is None else deep
            hidden = kept
        options["block"] = ("output", number)
        hidden = torch.cat([hidden, skips.pop()], dim=1)
        shape = skips[-1].shape if skips else None
        hidden = _block(unet.output_blocks[number], hidden, embedded, context, options, shape)
    return unet.out(hidden), kept


def _block(block, hidden, embedded, context, options, shape=None):
    return forward_timestep_embed(block, hidden, embedded, context, options, shape)


class BlockByBlock:
    """All blocks in their order, and the base of the others.

    Attributes:
        model: whose blocks are run; such packs keep it from the time when they patched it.
    """

    def __init__(self):
        self.calls = 0

    def __call__(self, apply_model, arguments):
        self.calls += 1
        x, sigma, conditions = arguments["input"], arguments["timestep"], arguments["c"]
        model = apply_model.__self__
        options = self.options(conditions["transformer_options"])
        out = self.run(
            model.diffusion_model,
            model.model_sampling.calculate_input(sigma, x),
            model.model_sampling.timestep(sigma).float(),
            conditions["c_crossattn"],
            conditions.get("y"),
            options,
        )
        return model.model_sampling.calculate_denoised(sigma, out, x)

    def options(self, options):
        return options

    def run(self, unet, x, timesteps, context, y, options):
        return run_blocks(unet, x, timesteps, context, y, options)[0]


class CopiesOptions(BlockByBlock):
    """Everything in them anew, tables and all."""

    def options(self, options):
        return copy.deepcopy(options)


class RebuildsOptions(BlockByBlock):
    """Only what it knows, in dictionaries of its own."""

    def options(self, options):
        tables = options.get("patches_replace", {})
        return {
            "patches": {name: list(each) for name, each in options.get("patches", {}).items()},
            "patches_replace": {name: dict(each) for name, each in tables.items()},
            "cond_or_uncond": options["cond_or_uncond"],
            "sigmas": options["sigmas"],
        }


_at_module_level = {}


class KeepsOptions(BlockByBlock):
    """The whole dictionary of the first call, for all that follow."""

    def options(self, options):
        return _at_module_level.setdefault("options", options)


class KeepsTables(BlockByBlock):
    """The replace-patches and patches of the first call, beside the options of each."""

    def options(self, options):
        names = ("patches", "patches_replace")
        kept = _at_module_level.setdefault("tables", {n: options[n] for n in names if n in options})
        return {**options, **kept}


class IgnoresPatches(BlockByBlock):
    """What stands in the options is left out."""

    def options(self, options):
        return {"cond_or_uncond": options["cond_or_uncond"], "sigmas": options["sigmas"]}


class SkipsBlocks(BlockByBlock):
    """A step cache: every second call runs the outer blocks alone, around what the first kept."""

    def run(self, unet, x, timesteps, context, y, options):
        deep = _at_module_level.get("deep") if self.calls % 2 == 0 else None
        out, _at_module_level["deep"] = run_blocks(
            unet, x, timesteps, context, y, options, deep=deep
        )
        return out


class SkipsBlocksWithKeptOptions(SkipsBlocks):
    """Both at once: what is not run in full is run with the options of the last full call."""

    def options(self, options):
        if self.calls % 2:
            _at_module_level["options"] = options
        return _at_module_level["options"]


class CallsInBetween(BlockByBlock):
    """Every second call goes to the UNet as it should."""

    def __call__(self, apply_model, arguments):
        if self.calls % 2:
            self.calls += 1
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return super().__call__(apply_model, arguments)


class CallsFirst(BlockByBlock):
    """The UNet is called as it should, for nothing; then its blocks are run."""

    def __call__(self, apply_model, arguments):
        apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return super().__call__(apply_model, arguments)


class CallsTheUNet(BlockByBlock):
    """The UNet itself is called, past the model around it: on tiles, where it is given some.

    Args:
        boxes: (top, left, height, width) in latent cells.

    Attributes:
        now: as of `splits.Split`.
    """

    def __init__(self, boxes=((0, 0, 16, 12),)):
        super().__init__()
        self._boxes, self.now = boxes, []

    def run(self, unet, x, timesteps, context, y, options):
        out, count = torch.zeros_like(x), torch.zeros_like(x)
        for top, left, height, width in self._boxes:
            down, across = slice(top, top + height), slice(left, left + width)
            self.now = [
                (row, list(range(16))[down], list(range(12))[across]) for row in range(len(x))
            ]
            tile = x[..., down, across]
            out[..., down, across] += unet(tile, timesteps, context, y, None, options)
            count[..., down, across] += 1
        return out / count


ACTING = [
    BlockByBlock,
    CopiesOptions,
    RebuildsOptions,
    KeepsOptions,
    KeepsTables,
    SkipsBlocks,
    SkipsBlocksWithKeptOptions,
    CallsInBetween,
    CallsFirst,
    CallsTheUNet,
]


def forget():
    """As if the packs had just been loaded."""
    _at_module_level.clear()


def in_front(model, function):
    model = model.clone()
    model.set_model_unet_function_wrapper(function)
    return model


def as_wrapper(model, forward):
    """A wrapper of the model that calls nothing behind it."""
    model = model.clone()

    def run(executor, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **extra):
        conditions = {"c_crossattn": c_crossattn, "transformer_options": options, **extra}
        own = type("Bound", (), {"__self__": executor.class_obj})
        return forward(own, {"input": x, "timestep": t, "c": conditions})

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "a step cache", run)
    return model


def in_place(model, forward):
    """In place of the model's own `apply_model`, by an object patch."""
    model = model.clone()

    def apply_model(x, t, **conditions):
        own = type("Bound", (), {"__self__": model.model})
        return forward(own, {"input": x, "timestep": t, "c": conditions})

    model.add_object_patch("apply_model", apply_model)
    return model
