"""ComfyUI's UNets: which they are, and their cross-attention layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import comfy.supported_models
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ....nested_core.call.plan import CallPlan
from ....nested_core.call.sighting import Watch
from ....nested_core.families.unet import UNET
from ....nested_core.families.unet_sites import AttentionSite
from ....nested_core.sites import Site
from ..names import name_of
from .unet_patches import is_open, put_up, put_up_compiled, sites_beside, take_down
from .unet_site_call import SiteCall

# SSD-1B, Vega, KOALA and the inpaint and instruct variants are subclasses of these. SD2.x (another
# tokenizer), SVD (time) and the upscaler are UNets too and are not.
_CONFIGS = (
    comfy.supported_models.SD15,
    comfy.supported_models.SDXL,
    comfy.supported_models.SDXLRefiner,
)


class UNetHost:
    """See `HostFamily`."""

    family = UNET
    label = (
        "the UNets of the SD1.5 and SDXL families (also SSD-1B, Vega, KOALA, the SDXL refiner and "
        "inpaint models)"
    )
    tokenizers: Mapping[frozenset[str], str] = MappingProxyType(
        {frozenset("l"): "SD1.5", frozenset("g"): "SDXL refiner", frozenset("lg"): "SDXL"}
    )

    def fits(self, base_model: Any) -> bool:
        config = getattr(base_model, "model_config", None)
        unet = _original(getattr(base_model, "diffusion_model", None))
        return isinstance(config, _CONFIGS) and isinstance(unet, UNetModel)

    def site_dims(self, model: Any) -> dict[AttentionSite, int]:
        """See `HostFamily`. The layer itself may be another pack's."""
        return {site: block.n_heads * block.d_head for site, block in blocks_of(model).items()}

    def functions(self, model: Any) -> Iterator[Any]:
        for block in blocks_of(model).values():
            yield from (block.forward, block.attn2.forward)

    def call(
        self,
        base_model: Any,
        x: Tensor,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
        plan: CallPlan,
        say: Callable[..., None],
        reached: set[Site],
        watch: Watch | None,
    ) -> SiteCall:
        """See `HostFamily`. Says which layers another pack has replaced by something closed."""
        blocks = blocks_of(base_model.diffusion_model)
        layers = {site: block.attn2 for site, block in blocks.items() if is_open(block.attn2)}
        for site in blocks.keys() - layers.keys() if plan.groups else ():
            say(
                f"the attention layer {site.text} was replaced by {name_of(blocks[site].attn2)}, "
                "in which no subject can act. Remove the node that does so, or keep it from that "
                "layer.",
                kind="replaced",
            )
        foreign = options.get("patches_replace", {}).get("attn2", {})
        beside = sites_beside(layers, foreign)
        return SiteCall(plan, say, reached, watch, False, foreign, layers, beside)

    def put_up(self, options: Mapping[str, Any], call: SiteCall) -> dict[str, Any]:
        return put_up(options, call)

    def put_up_compiled(self, options: Mapping[str, Any], call: SiteCall) -> dict[str, Any]:
        return put_up_compiled(options, call)

    def take_down(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return take_down(options)


def blocks_of(unet: Any) -> dict[AttentionSite, Any]:
    """The transformer block of each cross-attention site, in the order of the UNet's run.

    Compiled modules wrap the original, at whatever level somebody compiled them.
    """
    unet = _original(unet)
    levels = {
        "input": unet.input_blocks,
        "middle": [unet.middle_block],
        "output": unet.output_blocks,
    }
    return {
        AttentionSite(block, number, index): transformer
        for block, of_block in levels.items()
        for number, level in enumerate(of_block)
        for index, transformer in enumerate(_transformer_blocks(_original(level)))
    }


def _original(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


def _transformer_blocks(level: Any) -> list[Any]:
    layers = [_original(layer) for layer in (level if level is not None else ())]
    blocks = [
        _original(block)
        for layer in layers
        if isinstance(layer, SpatialTransformer)
        for block in layer.transformer_blocks
    ]
    # Not by class: another pack may have put a block of its own there.
    return [block for block in blocks if getattr(block, "attn2", None) is not None]


UNET_HOST = UNetHost()
