"""Packs that bring a transformer block's forward of their own, and tell patches little or nothing."""

from __future__ import annotations

from .unet import blocks_of

# What such a block puts into the options that it hands to patches, of all that the host puts there.
TOLD = {
    "everything": ("n_heads", "dim_head", "attn_precision", "block", "block_index", "rest"),
    "no precision": ("n_heads", "dim_head", "block", "block_index", "rest"),
    "only heads": ("n_heads",),
    "nothing": (),
    "no place": ("n_heads", "dim_head", "attn_precision", "rest"),
    "no shapes": ("n_heads", "dim_head", "attn_precision", "block", "block_index", "sigmas"),
}
_SHAPES_AND_ALL = ("activations_shape", "original_shape", "cond_or_uncond", "sigmas", "uuids")


class OwnForward:
    """Self-attention, cross-attention and the rest, written anew; patches are found as in the host.

    Args:
        site: where the block is; such packs remember it when they patch a model.
        attend: what runs where no replace-patch stands; the layer itself unless given.
    """

    def __init__(self, site, block, told):
        self._site, self._block, self._told = site, block, TOLD[told]
        self.calls = 0

    def _options(self, options):
        block = self._block
        known = {
            "n_heads": block.n_heads,
            "dim_head": block.d_head,
            "attn_precision": block.attn_precision,
            "block": self._site[:2],
            "block_index": self._site[2],
            "sigmas": options.get("sigmas"),
        }
        found = {name: known[name] for name in self._told if name in known}
        if "rest" in self._told:
            found |= {name: options[name] for name in _SHAPES_AND_ALL if name in options}
        return found

    def __call__(self, x, context=None, transformer_options=None):
        self.calls += 1
        block, options = self._block, transformer_options or {}
        table, extra = options.get("patches_replace", {}), self._options(options)
        normed = block.norm1(x)
        x = x + 1.1 * self._run(block.attn1, normed, normed, normed, table.get("attn1", {}), extra)
        normed, key, value = block.norm2(x), context, context
        for patch in options.get("patches", {}).get("attn2_patch", ()):
            normed, key, value = patch(normed, key, value, extra)
        out = self._run(block.attn2, normed, key, value, table.get("attn2", {}), extra)
        for patch in options.get("patches", {}).get("attn2_output_patch", ()):
            out = patch(out, extra)
        x = x + out
        return x + block.ff(block.norm3(x))

    def _run(self, layer, x, key, value, table, extra):
        patch = table.get(self._site, table.get(self._site[:2]))
        if patch is None:
            return layer(x, context=key, value=value)
        out = patch(layer.to_q(x), layer.to_k(key), layer.to_v(value), extra)
        return layer.to_out(out)


def on_model(model, told, chosen=lambda site: True):
    """A clone with such blocks in place of the host's forwards."""
    model = model.clone()
    for site, (path, block) in blocks_of(model).items():
        if chosen(site):
            model.add_object_patch(f"{path}.forward", OwnForward(site, block, told))
    return model


def without_arguments(model):
    """One whose patches are called with query, key and value alone."""
    model = model.clone()
    for site, (path, block) in blocks_of(model).items():
        forward = OwnForward(site, block, "nothing")
        forward._run = _silent(forward)
        model.add_object_patch(f"{path}.forward", forward)
    return model


def _silent(forward):
    def run(layer, x, key, value, table, extra):
        patch = table.get(forward._site, table.get(forward._site[:2]))
        if patch is None:
            return layer(x, context=key, value=value)
        return layer.to_out(patch(layer.to_q(x), layer.to_k(key), layer.to_v(value), None))

    return run
