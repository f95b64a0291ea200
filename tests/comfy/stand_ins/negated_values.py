"""A pack for negative weights in prompts: every token is said twice, as a key and as a value.

The text encoder's side interleaves both, with the value negated where the weight is negative; the
UNet's side takes them apart again before each cross-attention.
"""

from __future__ import annotations

import torch


def on_clip(clip):
    """A clone whose text encoders interleave."""
    clip = clip.clone()
    for name in ("clip_l", "clip_g"):
        inner = getattr(clip.cond_stage_model, name, None)
        if inner is not None:
            encode = _interleaving(type(inner).encode_token_weights.__get__(inner))
            clip.patcher.add_object_patch(f"{name}.encode_token_weights", encode)
    return clip


def _interleaving(encode):
    def interleaved(chunks):
        unsigned = [[(token, abs(weight)) for token, weight in chunk] for chunk in chunks]
        signs = torch.tensor([-1.0 if weight < 0 else 1.0 for c in chunks for _, weight in c])
        context, *others = encode(unsigned)
        return (_doubled(context, signs), *others)

    return interleaved


def _doubled(context, signs):
    values = context * signs.to(context)[None, :, None]
    return torch.stack([context, values], dim=2).flatten(1, 2)


def on_conditioning(conditioning, negated=()):
    """The same as a node behind the text encoder; `negated`: which tokens."""
    found = []
    for context, extras in conditioning:
        signs = torch.ones(context.shape[1])
        signs[list(negated)] = -1.0
        found.append([_doubled(context, signs), extras])
    return found


def on_model(model):
    """A clone whose layers take keys and values apart."""
    model = model.clone()
    model.set_model_attn2_patch(lambda n, k, v, options: (n, k[:, 0::2], v[:, 1::2]))
    return model
