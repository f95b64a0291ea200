"""Which models and text encoders the method fits, and the attention sites of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.supported_models
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ....nested_core.encoder import Encoder
from ....nested_core.errors import HostError
from ....nested_core.families.unet import UNET
from ....nested_core.families.unet_sites import AttentionSite

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

# SSD-1B, Vega, KOALA and the inpaint and instruct variants are subclasses of these. SD2.x (another
# tokenizer), SVD (time) and the upscaler are UNets too and are not.
_FAMILIES = (
    comfy.supported_models.SD15,
    comfy.supported_models.SDXL,
    comfy.supported_models.SDXLRefiner,
)
_SUPPORTED = (
    "Nested Attention works with the UNets of the SD1.5 and SDXL families (also SSD-1B, Vega, "
    "KOALA, the SDXL refiner and inpaint models)"
)


def site_dims(model: ModelPatcher) -> dict[AttentionSite, int]:
    """Inner width (heads * head_dim) of each cross-attention layer of the model's UNet.

    Raises:
        HostError: the model is not a UNet of a supported family; it is named.
    """
    return {
        site: block.n_heads * block.d_head  # the layer itself may be another pack's
        for site, block in blocks_of(_unet(model)).items()
    }


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


def _unet(model: ModelPatcher) -> UNetModel:
    config = getattr(model.model, "model_config", None)
    unet = _original(getattr(model.model, "diffusion_model", None))
    if not isinstance(config, _FAMILIES) or not isinstance(unet, UNetModel):
        kind = type(config).__name__ if config is not None else type(model.model).__name__
        raise HostError(
            f"Apply Nested Attention: this MODEL is '{kind}'. {_SUPPORTED}. "
            "Connect such a checkpoint."
        )
    return unet


def check_encoder_fits(encoder: Encoder, dims: dict[AttentionSite, int]) -> None:
    """Raises HostError unless the encoder's sites are exactly the model's, with the same widths."""
    if encoder.site_dims == dims:
        return
    if encoder.site_dims.keys() != dims.keys():
        listed = encoder.family.describe_sites(encoder.site_dims), UNET.describe_sites(dims)
        found, expected = (
            f"{len(sites)} attention sites ({listing})"
            for sites, listing in zip((encoder.site_dims, dims), listed, strict=True)
        )
    else:
        site = next(site for site in dims if encoder.site_dims[site] != dims[site])
        found, expected = (
            f"width {sites[site]} at site {site.text}" for sites in (encoder.site_dims, dims)
        )
    raise HostError(
        f"Apply Nested Attention: encoder '{encoder.name}' (made for '{encoder.config.base}') has "
        f"{found}, but this MODEL has {expected}. Connect the kind of checkpoint that the encoder "
        "was trained for, or load an encoder for this one."
    )


def check_clip(clip: CLIP) -> None:
    """Raises HostError unless the text encoder is CLIP-L, CLIP-G or both."""
    keys = set(clip.tokenize("")) if clip is not None else set()
    if not keys or not keys <= set(UNET.tokenizers):
        tokenizers = ", ".join(sorted(keys)) or "none"
        raise HostError(
            f"Apply Nested Attention: this CLIP has the tokenizers '{tokenizers}', expected 'l' (SD1.5), "
            "'g' (SDXL refiner) or both (SDXL). Connect the CLIP output of the checkpoint that the "
            "MODEL comes from."
        )
