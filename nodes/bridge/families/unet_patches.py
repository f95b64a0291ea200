"""What stands in the UNet's options during one call, and how it is taken out again.

Where no subject acts nothing stands. Where one does, there are three ways to its site:

* another pack's replace-patch is there: ours stands around it, and its result is the base;
* the layer is ComfyUI's own: a replace-patch computes the base exactly as the layer would;
* the layer has been given a forward of its own: that one runs, undisturbed, and what the subjects
  add goes through the layer's output projection, which is linear, and is added behind it.

A compiled UNet remembers which sites were patched when it was traced. There a patch stands on every
site at all times, and computes the host's own where nobody acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ....nested_core.attention import merge_heads
from ....nested_core.families.unet_sites import AttentionSite
from .model_call import CALL_KEY, Standing, current_call
from .unet_site_call import Asked, Patch, SiteCall, patch_at


class SitePatch(Standing):
    """A replace-patch of one site in one call."""

    def __init__(self, call: SiteCall, site: AttentionSite, within: Patch | None) -> None:
        super().__init__(call)
        self.site, self.within = site, within

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, options: Any = None) -> Tensor:
        # Another pack's block need not have any options.
        asked = Asked(self.site, query, key, value, {} if options is None else options)
        return self.acting.added_to(self.call.base(asked), asked)


class LayerInput(Standing):
    """Behind all patches of a layer's inputs: remembers what the layer is about to be given."""

    def __call__(self, hidden: Tensor, context: Tensor, value: Tensor, options: Any) -> Any:
        return _remember(self.acting, hidden, context, value, options)


class LayerOutput(Standing):
    """Before all patches of a layer's output: adds what the subjects do to it."""

    def __call__(self, output: Tensor, options: Any) -> Tensor:
        return _add(self.acting, output, options)


def _remember(call: SiteCall, hidden: Tensor, context: Tensor, value: Tensor, options: Any) -> Any:
    site = site_of(options)
    if site is not None and site in call.beside and not call.is_over:
        call.given = (site, hidden, context, context if value is None else value)
    return hidden, context, value


def _add(call: SiteCall, output: Tensor, options: Any) -> Tensor:
    given, call.given = call.given, None
    if given is None or given[0] != site_of(options):
        return output
    site, hidden, context, value = given
    layer = call.layers[site]
    context, value = (_of_rows(each, len(hidden)) for each in (context, value))
    deltas = call.deltas(
        Asked(site, layer.to_q(hidden), layer.to_k(context), layer.to_v(value), options)
    )
    if not deltas:
        return output
    output = output.clone()
    for rows, delta in deltas:
        delta = merge_heads(delta).to(output.dtype)
        # The projection's bias is in the layer's output already.
        output[rows] += layer.to_out(delta) - layer.to_out(torch.zeros_like(delta[:, :1]))
    return output


def _of_rows(context: Tensor, num_rows: int) -> Tensor:
    """The rows of a text that belong to the pixels: a layer of its own may be given more behind them."""
    return context[:num_rows] if len(context) > num_rows else context


def site_of(options: Mapping[str, Any]) -> AttentionSite | None:
    """Where a patch is called, as the options tell it."""
    block = options.get("block")
    if block is None:
        return None
    return AttentionSite(block[0], block[1], options.get("block_index", 0))


def put_up(options: Mapping[str, Any], call: SiteCall) -> dict[str, Any]:
    """A copy of the options in which the subjects of this call act."""
    replace = options.get("patches_replace", {})
    table = dict(call.foreign)
    for site in call.layers:
        if call.acts_at(site) and site not in call.beside:
            table[(*site,)] = SitePatch(call, site, patch_at(call.foreign, site))
    result = {**options, "patches_replace": {**replace, "attn2": table}, CALL_KEY: call}
    if any(call.acts_at(site) for site in call.beside):
        result["patches"] = _with_layers(options, LayerInput(call), LayerOutput(call))
    return result


def put_up_compiled(options: Mapping[str, Any], call: SiteCall) -> dict[str, Any]:
    """A copy of the options with a patch on every site, which finds the call when it runs."""
    replace = options.get("patches_replace", {})
    traced = _traced()
    own = {(*site,): traced.attend for site in call.layers if site not in call.beside}
    result = {**options, "patches_replace": {**replace, "attn2": {**call.foreign, **own}}}
    if call.beside:
        result["patches"] = _with_layers(options, traced.remember, traced.add)
    return result


def _with_layers(options: Mapping[str, Any], given: Any, done: Any) -> dict[str, Any]:
    patches = options.get("patches", {})
    return {
        **patches,
        "attn2_patch": [*patches.get("attn2_patch", ()), given],
        "attn2_output_patch": [done, *patches.get("attn2_output_patch", ())],
    }


def take_down(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without anything of ours: some remember those of an earlier or a wider call."""
    options = dict(options)
    table = options.get("patches_replace", {}).get("attn2", {})
    if any(_is_ours(each) for each in table.values()):
        kept = {key: _without_ours(each) for key, each in table.items()}
        # What stands on a whole block was within the patches of its sites, and still stands there.
        kept = {
            key: each
            for key, each in kept.items()
            if each is not None and (len(key) < 3 or each is not kept.get(key[:2]))
        }
        options = {**options, "patches_replace": {**options["patches_replace"], "attn2": kept}}
    patches = options.get("patches", {})
    if any(_is_ours(each) for listed in patches.values() for each in listed):
        kept = {
            name: [each for each in listed if not _is_ours(each)]
            for name, listed in patches.items()
        }
        options = {**options, "patches": {name: listed for name, listed in kept.items() if listed}}
    return options


def _without_ours(patch: Patch) -> Patch | None:
    if isinstance(patch, SitePatch):
        return patch.within
    return None if _is_ours(patch) else patch


def _is_ours(patch: Any) -> bool:
    if isinstance(patch, Standing):
        return True
    # Only where something was compiled already: asking for them loads the compiler.
    return bool(_traced.cache_info().currsize) and any(patch is each for each in _traced())


def sites_beside(
    layers: Mapping[AttentionSite, Any], foreign: Mapping[Any, Patch]
) -> frozenset[AttentionSite]:
    """The sites whose layers run a forward of their own.

    A replace-patch of another pack bypasses the layer's forward, as it does without us.
    """
    return frozenset(
        site
        for site, layer in layers.items()
        if patch_at(foreign, site) is None and not is_hosts_own(layer)
    )


def is_open(layer: Any) -> bool:
    """Whether a layer has the projections that a subject needs."""
    return all(hasattr(layer, name) for name in ("to_q", "to_k", "to_v", "to_out"))


class _Traced(NamedTuple):
    attend: Patch
    remember: Any
    add: Any


@cache
def _traced() -> _Traced:
    # A traced plan would be repeated in calls that have another one. The same functions everywhere,
    # which ask where they are: TorchCompileModel lets layers of the same shape share one trace, and
    # with it the function that was found when the first was traced.
    disable = torch.compiler.disable
    return _Traced(cast("Patch", disable(_attend_now)), disable(_remember_now), disable(_add_now))


def _attend_now(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    return _now().attend(Asked(site_of(options), query, key, value, options))


def _remember_now(hidden: Tensor, context: Tensor, value: Tensor, options: Any) -> Any:
    return _remember(_now(), hidden, context, value, options)


def _add_now(output: Tensor, options: Any) -> Tensor:
    return _add(_now(), output, options)


def _now() -> SiteCall:
    """Nobody acts where a pack has kept these functions and calls them by itself."""
    call = current_call.get()
    return call if isinstance(call, SiteCall) else SiteCall()


def is_hosts_own(layer: Any) -> bool:
    """Whether an attention layer still runs ComfyUI's own forward, and that alone."""
    host = comfy.ldm.modules.attention
    forward = getattr(layer.forward, "__func__", None)
    return (
        type(layer) is host.CrossAttention
        and forward is host.CrossAttention.forward
        # Also where the class itself was given another one: names can be copied, code stays.
        and _file_of(forward) == _file_of(host.CrossAttention.__init__)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


def _file_of(function: Any) -> str | None:
    return getattr(getattr(function, "__code__", None), "co_filename", None)
