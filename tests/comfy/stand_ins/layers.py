"""Packs that give a cross-attention layer a forward of their own.

A maker takes a layer and returns what is to run in place of its forward. How it gets there is a
pack's other choice; both are tables here.
"""

from __future__ import annotations

import copy

import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from comfy.patcher_extension import WrappersMP

from .unet import blocks_of


class Count:
    """How often the forwards of a stand-in have run."""

    def __init__(self):
        self.calls = 0


def scaled(layer, count=None):
    """The host's own result, made smaller."""

    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        _tick(count)
        options = transformer_options or {}
        return 0.6 * CrossAttention.forward(layer, x, context, value, mask, options)

    return forward


def by_hand(layer, count=None):
    """An attention of its own, which hears nothing of the options, with sharper weights."""

    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        _tick(count)
        return layer.to_out(_attend(layer, 1.3 * x, context, value))

    return forward


EXTRA_ROWS = 1


def normalised_guidance(layer, count=None, strength=2.0, limit=1.5, share=0.5):
    """Attends a second time, to text rows behind the batch's, and pushes away from what it finds."""

    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        _tick(count)
        value = context if value is None else value
        out = _attend(layer, x, context[: len(x)], value[: len(x)])
        if len(context) > len(x):
            away = context[len(x) :].expand(len(x), -1, -1)
            away = _attend(layer, x, away, away)
            guided = out * (1 + strength) - away * strength
            ratio = guided.norm(p=1, dim=-1, keepdim=True) / out.norm(p=1, dim=-1, keepdim=True)
            guided = guided * ratio.clamp(max=limit) / ratio
            out = guided * share + out * (1 - share)
        return layer.to_out(out)

    return forward


def _attend(layer, x, context, value):
    context = x if context is None else context
    value = context if value is None else value
    query, key, value = layer.to_q(x), layer.to_k(context), layer.to_v(value)
    return optimized_attention(query, key, value, layer.heads)


def _tick(count):
    if count is not None:
        count.calls += 1


MAKERS = {"scaled": scaled, "by hand": by_hand, "normalised guidance": normalised_guidance}


def with_extra_text(model):
    """Appends one text row to what the UNet is given, as normalised guidance needs it."""

    def more(executor, x, timesteps, context, *args, **kwargs):
        extra = torch.roll(context[:EXTRA_ROWS], 3, dims=1) * 0.7
        return executor(x, timesteps, torch.cat([context, extra]), *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "normalised guidance", more)
    return model


def on_instances(model, make, count=None):
    """`layer.forward = ...`, for good."""
    for _, block in blocks_of(model).values():
        block.attn2.forward = make(block.attn2, count)
    return model


def as_object_patches(model, make, count=None):
    """By ComfyUI's own way, which puts the original back when the model is unloaded."""
    model = model.clone()
    for path, block in blocks_of(model).values():
        model.add_object_patch(f"{path}.attn2.forward", make(block.attn2, count))
    return model


class OpenLayer(torch.nn.Module):
    """Another class in the layer's place, with the layer's own projections."""

    def __init__(self, layer, make, count):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (
            layer.to_q,
            layer.to_k,
            layer.to_v,
            layer.to_out,
        )
        self._run = make(layer, count)

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        return self._run(x, context, value, mask, transformer_options)


class ClosedLayer(torch.nn.Module):
    """One that shows nothing of what is inside."""

    def __init__(self, layer, make, count):
        super().__init__()
        self._run = make(layer, count)
        self._parts = [layer]  # in a list, where no module is looked for

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        return self._run(x, context, value, mask, transformer_options)


class Subclass(CrossAttention):
    """ComfyUI's class with a forward of its own; what is in it is the layer's."""

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        return self.run_instead(x, context, value, mask, transformer_options)


def as_open_modules(model, make, count=None):
    return _as_modules(model, lambda layer: OpenLayer(layer, make, count))


def as_closed_modules(model, make, count=None):
    return _as_modules(model, lambda layer: ClosedLayer(layer, make, count))


def as_module_patches(model, make, count=None):
    model = model.clone()
    for path, block in blocks_of(model).values():
        model.add_object_patch(f"{path}.attn2", OpenLayer(block.attn2, make, count))
    return model


def as_subclass(model, make, count=None):
    """`layer.__class__ = ...`."""
    for _, block in blocks_of(model).values():
        block.attn2.run_instead = make(copy.copy(block.attn2), count)
        block.attn2.__class__ = Subclass
    return model


def _as_modules(model, wrap):
    for _, block in blocks_of(model).values():
        block.attn2 = wrap(block.attn2)
    return model


WAYS = {
    "instances": on_instances,
    "object patches": as_object_patches,
    "open modules": as_open_modules,
    "module patches": as_module_patches,
    "a subclass": as_subclass,
}


def by_hooks(model, before=1.2, after=0.6):
    """PyTorch's own hooks: what comes in is changed, and what goes out."""
    for _, block in blocks_of(model).values():
        block.attn2.register_forward_pre_hook(lambda _, given: (given[0] * before, *given[1:]))
        block.attn2.register_forward_hook(lambda _, given, out: out * after)
    return model


def hooked(layer, count=None, before=1.2, after=0.6):
    """What those hooks make of a layer, as a maker."""

    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        return after * CrossAttention.forward(layer, x * before, context, value, mask, {})

    return forward
