"""A real UNet whose cross-attention is known: which pixels attend to which token is written down.

The weights are constructed, nothing is hooked. An inpainting UNet reads extra channels that stay the
same at every step. Two of them hold a pattern for each subject; the convolutions pass them on
untouched to every site (each level of the UNet takes every other pixel of the one before), queries
are those channels, and the keys of the bound tokens ask for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pack
import scenes
import torch
from torch import Tensor

PROMPT = "<rex> and <anna>"
POSITIONS = {"<rex>": 1, "<anna>": 3}
TOKENS = ("<anna>", "<rex>")  # in the order of the channels
HALF = 2e-3  # maps are kept in float16
_FIRST_CHANNEL = 5  # of what the UNet reads: noisy latent 4, mask 1, masked picture 4
_GAIN = 8.0  # on the queries: logits of +20 at the pattern and below -1 beside it


def make_scene() -> scenes.Scene:
    """An SD1.5 whose seven sites see the patterns; subject and encoder are random as always."""
    scene = scenes.make_scene_of("sd15", in_channels=9)
    unet = scene.model.model.diffusion_model
    values = {name: each.data for name, each in unet.named_parameters() if ".attn2.to_v." in name}
    for name, parameter in unet.named_parameters():
        if name not in values:
            parameter.data = torch.zeros_like(parameter)
    _pass_on(unet.input_blocks[0][0].weight.data, at=range(_FIRST_CHANNEL, _FIRST_CHANNEL + 2))
    for block in unet.input_blocks:
        _pass_on_in(block)
    _pass_on_in(unet.middle_block)
    channels = unet.middle_block[-1].out_channels
    for block in unet.output_blocks:
        # Behind what comes from below, at half the resolution, is what the input block kept.
        _pass_on_in(block, behind=channels)
        channels = block[0].out_channels
    return scene


# Where the patterns lie: where a GroupNorm joins two channels, one is always empty.
_CHANNELS = (0, 2)


def _pass_on(weight: Tensor, at: Sequence[int] = _CHANNELS) -> None:
    """Each pixel's own patterns, read from channels `at`."""
    for channel, source in zip(_CHANNELS, at, strict=True):
        weight[channel, source, weight.shape[2] // 2, weight.shape[3] // 2] = 1.0


def _pass_on_in(block: Any, behind: int = 0) -> None:
    for layer in block:
        kind = type(layer).__name__
        if kind == "ResBlock" and hasattr(layer.skip_connection, "weight"):
            _pass_on(layer.skip_connection.weight.data, [behind + each for each in _CHANNELS])
        elif kind == "Downsample":
            _pass_on(layer.op.weight.data)
        elif kind == "SpatialTransformer":
            layer.norm.weight.data.fill_(1.0)
            for n, channel in enumerate(_CHANNELS):
                layer.proj_in.weight.data[n, channel] = 1.0
            for transformer_block in layer.transformer_blocks:
                _construct(transformer_block)


def _construct(block: Any) -> None:
    block.norm2.weight.data.fill_(1.0)
    attention = block.attn2
    for head in range(block.n_heads):
        for n in range(len(TOKENS)):
            attention.to_q.weight.data[head * block.d_head + n, n] = _GAIN
            attention.to_k.weight.data[head * block.d_head + n, n] = 1.0


def pattern(*boxes: tuple[slice, slice], size: tuple[int, int] = (16, 12)) -> Tensor:
    """Ones in the boxes, zeros elsewhere."""
    made = torch.zeros(size)
    for box in boxes:
        made[box] = 1.0
    return made


def on_grid(known: Tensor, grid: tuple[int, int]) -> Tensor:
    """The pattern as a site of this grid sees it."""
    step = known.shape[-1] // grid[1]
    return known[..., ::step, ::step]


def conditionings(scene: scenes.Scene, clip: Any, patterns: Tensor, prompt: str = PROMPT) -> Any:
    """Positive and negative: keys that ask for `patterns` `[pictures, subjects, height, width]`."""
    pictures, number, height, width = patterns.shape
    shown = torch.zeros(pictures, 4, height, width)
    shown[:, :number] = 10.0 * patterns
    inpaint = {
        "concat_latent_image": shown,
        "concat_mask": torch.zeros(pictures, 1, height, width),
    }
    made = []
    for text in (prompt, ""):
        ((context, settings),) = scene.encode(clip, text)
        context = torch.zeros_like(context)
        if text:
            for n, token in enumerate(TOKENS):
                context[0, POSITIONS[token], n] = 1.0
        else:
            context[0, 0, -1] = 1.0  # not all zeros: that is a prompt which was zeroed out
        made.append([[context, {**settings, **inpaint}]])
    return made


def applied(scene, *, anna=None, model=None, record=None, before=False, separation=0.0, **settings):
    """MODEL, CLIP and record of two subjects, the record's node before or behind Apply."""
    model, found = scene.model if model is None else model, None
    if record is not None and before:
        model, found = pack.run("RecordMaps", model=model, **record)
    bindings = {
        "binding_0": scene.bind(
            token="<anna>",
            noun="woman",
            **{"subject": scene.subject(0), **settings, **(anna or {})},
        ),
        "binding_1": scene.bind(scene.subject(1), "<rex>", "dog", **settings),
    }
    model, clip = pack.run(
        "Apply", model=model, clip=scene.clip, bindings=bindings, separation=separation
    )
    if record is not None and not before:
        model, found = pack.run("RecordMaps", model=model, **record)
    return model, clip, found
