"""Tiny random models of the real classes of ComfyUI: UNets of both families, CLIP, CLIP vision, VAE.

ComfyUI creates its layers without initialising them, so every weight is drawn here from a seed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.taesd.taesd import TAESD

CPU = torch.device("cpu")
CLIP_L_WIDTH, CLIP_G_WIDTH = 16, 32
TEXT_WIDTH = {"sd15": CLIP_L_WIDTH, "sdxl": CLIP_L_WIDTH + CLIP_G_WIDTH}
VISION_CONFIG = {
    "hidden_size": 24,
    "image_size": 32,
    "patch_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "projection_dim": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
}
_WIDEST_SMALL_VISION = 32

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
    "use_temporal_attention": False,
}


class TinySD15(comfy.supported_models.SD15):
    """7 sites of 8 heads, as every SD1.5 has."""

    unet_config: ClassVar[dict[str, Any]] = {
        **_UNET,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": TEXT_WIDTH["sd15"],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    }


class TinySDXL(comfy.supported_models.SDXL):
    """No attention at the first level, two transformer blocks at the deepest, as SDXL in small.

    11 sites of 4 heads: ComfyUI sets the width of a head by the family, 64 in SDXL.
    """

    unet_extra_config: ClassVar[dict[str, Any]] = {"num_heads": -1, "num_head_channels": 16}

    unet_config: ClassVar[dict[str, Any]] = {
        **_UNET,
        "num_res_blocks": [1, 1, 1],
        "channel_mult": [1, 2, 2],
        "transformer_depth": [0, 1, 2],
        "transformer_depth_output": [0, 0, 1, 1, 2, 2],
        "transformer_depth_middle": 2,
        "num_classes": "sequential",
        "context_dim": TEXT_WIDTH["sdxl"],
        "use_linear_in_transformer": True,
        "adm_in_channels": CLIP_G_WIDTH + 6 * 256,
    }


FAMILIES = {"sd15": TinySD15, "sdxl": TinySDXL}
_CLIPS = {
    "sd15": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
    "sdxl": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
}


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> torch.nn.Module:
    """Weights that keep activations near unit size, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values *= gain * parameter[0].numel() ** -0.5
        else:
            values = values * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        parameter.data = values.to(parameter.dtype)
    return module


def unet(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 1, **overrides: Any
) -> ModelPatcher:
    """A MODEL of the family (`sd15` or `sdxl`)."""
    config = FAMILIES[family]({**FAMILIES[family].unet_config, **overrides})
    config.unet_config = {**config.unet_config, "dtype": dtype}
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        config.set_inference_dtype(dtype, torch.float32)
    model = config.get_model({}, device=CPU)
    randomise(model.diffusion_model, seed, gain=1.7)
    return ModelPatcher(model, CPU, CPU)


def clip(family: str, seed: int = 2) -> comfy.sd.CLIP:
    """A CLIP with the real tokenizer and tiny text encoders."""

    class Target:
        params: ClassVar[dict[str, Any]] = {}
        clip, tokenizer = _CLIPS[family]

    options = {
        "clip_l_model_config": _text_model(CLIP_L_WIDTH),
        "clip_g_model_config": _text_model(CLIP_G_WIDTH),
    }
    text_encoder = comfy.sd.CLIP(Target, model_options=options)
    randomise(text_encoder.cond_stage_model, seed)
    return text_encoder


def _text_model(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": width * 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "projection_dim": width,
    }


def clip_vision(seed: int = 3, **overrides: Any) -> comfy.clip_vision.ClipVisionModel:
    """A CLIP_VISION at 32 pixels."""
    with tempfile.TemporaryDirectory() as folder:  # the oldest host reads a file only
        path = Path(folder, "config.json")
        path.write_text(json.dumps({**VISION_CONFIG, **overrides}), encoding="utf-8")
        vision = comfy.clip_vision.ClipVisionModel(str(path))
    randomise(vision.model, seed)
    return vision


def with_small_files(load_from_state: Callable[..., Any]) -> Callable[..., Any]:
    """ComfyUI's reader of CLIP vision files (`comfy.clip_vision.load_clipvision_from_sd`), which tells
    them by their number of layers, and with this also reads files of an image encoder of `clip_vision`.

    What such a file does not hold is random as there; the class embedding alone is enough.
    """

    def load(sd: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        embedding = sd.get("vision_model.embeddings.class_embedding")
        if embedding is None or len(embedding) > _WIDEST_SMALL_VISION:
            return load_from_state(sd, *args, **kwargs)
        vision = clip_vision(hidden_size=len(embedding))
        vision.load_sd(sd)
        return vision

    return load


def vae(seed: int = 4) -> comfy.sd.VAE:
    """A VAE: the tiny autoencoder's architecture, random weights."""
    state = randomise(TAESD(), seed, gain=1.4).state_dict()
    return comfy.sd.VAE(sd=dict(state))


def control_net(family: str, seed: int = 6) -> comfy.controlnet.ControlNet:
    """A CONTROL_NET for pictures eight times as large as the latent."""
    config = {**FAMILIES[family].unet_config, **FAMILIES[family].unet_extra_config}
    for key in ("image_size", "out_channels", "transformer_depth_output", "use_temporal_attention"):
        del config[key]
    control_model = comfy.cldm.cldm.ControlNet(image_size=32, hint_channels=3, device=CPU, **config)
    randomise(control_model, seed)
    return comfy.controlnet.ControlNet(control_model, load_device=CPU)
