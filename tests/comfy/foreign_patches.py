"""Patches as other packs put them on cross-attention, and what the host and a subject make of them."""

from __future__ import annotations

import composition
import reference
from comfy.ldm.modules.attention import optimized_attention


class Patch:
    """A replace-patch that attends by itself and scales its result; counts and remembers its calls."""

    def __init__(self, scale=0.7):
        self.scale = scale
        self.sites = []
        self.options = []

    def __call__(self, query, key, value, extra_options):
        self.sites.append((*extra_options["block"], extra_options["block_index"]))
        self.options.append(extra_options)
        return self.scale * attention(query, key, value, extra_options)


class MovablePatch(Patch):
    """One with the methods that ComfyUI and other packs look for on patch objects."""

    def __init__(self, scale=0.7):
        super().__init__(scale)
        self.devices = []

    def to(self, device):
        self.devices.append(device)
        return self

    def add(self, *_):
        raise AssertionError("somebody took this for a patch of its own kind")


def attention(query, key, value, options):
    return optimized_attention(
        query, key, value, options["n_heads"], attn_precision=options["attn_precision"]
    )


def put_on(model, patch, keys):
    model = model.clone()
    for key in keys:
        model.set_model_attn2_replace(patch, *key)
    return model


def sites_of(scene):
    return [tuple(site) for site in scene.sites]


def blocks_of(scene):
    return list(dict.fromkeys(site[:2] for site in sites_of(scene)))


KEYS = {"(block, n, i)": sites_of, "(block, n)": blocks_of}


def expect(scene, subject, base, alter=composition.unaltered, cast=composition.ALONE):
    """`base(query, key, value, options)` of each site, and the cast's difference beside it."""
    positive, negative = (
        scene.encode(scene.clip, text) for text in (cast.plain, composition.NEGATIVE)
    )
    rows = reference.positive_only(composition.naive_slots(scene, subject, cast))
    tables = cast.naive_tables

    def attend(query, key, value, options):
        ours = reference.attend(query, key, value, options, rows, tables)
        delta = ours - attention(query, key, value, options)
        return base(query, key, value, options) + delta

    model = put_on(scene.model, attend, sites_of(scene))
    return scene.sample(alter(model), positive, negative)


def sample_host(scene, alter, prompt=composition.PLAIN):
    positive, negative = (scene.encode(scene.clip, text) for text in (prompt, composition.NEGATIVE))
    return scene.sample(alter(scene.model), positive, negative)
