"""Packs that read and encode prompts in a way of their own."""

from __future__ import annotations

import re

import comfy.sd
import torch

END = 49407


class OwnTokenizer:
    """Stands in the place of ComfyUI's tokenizer object, with a syntax of its own: `[word]` is louder."""

    def __init__(self, host):
        self._host = {
            name: each for name, each in vars(host).items() if hasattr(each, "start_token")
        }

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        return {
            name.removeprefix("clip_"): [self._chunk(inner, text)]
            for name, inner in self._host.items()
        }

    def _chunk(self, inner, text):
        chunk = [(inner.start_token, 1.0)]
        for word in re.findall(r"\[?\w+\]?", text):
            loud = 1.1 if word.startswith("[") else 1.0
            ids = inner.tokenizer(word.strip("[]"))["input_ids"][1:-1]
            chunk += [(each, loud) for each in ids]
        chunk.append((inner.end_token, 1.0))
        return chunk + [(inner.pad_token, 1.0)] * (inner.max_length - len(chunk))


def with_own_tokenizer(clip):
    clip = clip.clone()
    clip.tokenizer = OwnTokenizer(clip.tokenizer)
    return clip


class OwnClip(comfy.sd.CLIP):
    """A kind of CLIP with a way of its own to tokenise: weights are left out."""

    def clone(self, *args, **kwargs):
        twin = super().clone(*args, **kwargs)
        twin.__class__ = type(self)
        return twin

    def tokenize(self, text, return_word_ids=False, **kwargs):
        tokens = super().tokenize(text, return_word_ids, **kwargs)
        return {name: [[(t[0], 1.0) for t in c] for c in chunks] for name, chunks in tokens.items()}


def as_own_clip(clip):
    clip = clip.clone()
    clip.__class__ = OwnClip
    return clip


def weighed_by_hand(clip, text, **_):
    """Encodes all words alike and makes the rows longer or shorter afterwards."""
    tokens = clip.tokenize(text)
    weights = torch.tensor([t[1] for chunk in tokens["l"] for t in chunk])
    even = {
        name: [[(t[0], 1.0) for t in chunk] for chunk in chunks] for name, chunks in tokens.items()
    }
    context, pooled = clip.encode_from_tokens(even, return_pooled=True)
    return [[context * weights[None, :, None], {"pooled_output": pooled}]]


def weighed_with_extras(clip, text, factor=1.05):
    """The same with what ComfyUI's newer call hands out beside the context."""
    encoded = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)
    context = encoded.pop("cond")
    return [[context * factor, encoded]]


def straight_from_the_model(clip, text, **_):
    """Past the CLIP object."""
    clip.load_model()
    context, pooled, *_ = clip.cond_stage_model.encode_token_weights(clip.tokenize(text))
    return [[context, {"pooled_output": pooled}]]


def cut(clip, text, place, mixed=1.0):
    """Cut attention: one word is padding while the others are encoded.

    Args:
        mixed: how much of the result is without the word; the rest is encoded with it.
    """
    tokens = clip.tokenize(text)
    without = {
        name: [
            [(END, *t[1:]) if number == place else t for number, t in enumerate(chunk)]
            for chunk in chunks
        ]
        for name, chunks in tokens.items()
    }
    ((context, extras),) = clip.encode_from_tokens_scheduled(without)
    if mixed < 1.0:
        ((whole, extras),) = clip.encode_from_tokens_scheduled(tokens)
        context = context * mixed + whole * (1 - mixed)
    return [[context, extras]]


def in_parts(clip, text, separator="BREAK"):
    """Each part is encoded by itself; their contexts stand side by side with the first one's extras."""
    parts = [clip.encode_from_tokens_scheduled(clip.tokenize(p)) for p in text.split(separator)]
    contexts = [context for ((context, _),) in parts]
    return [[torch.cat(contexts, dim=1), parts[0][0][1]]]
