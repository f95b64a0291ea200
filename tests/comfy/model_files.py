"""Tiny random model files in ComfyUI's own folders, so that its real loaders read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.supported_models
import folder_paths
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

_DETECTED_BY = ("model_channels", "context_dim", "adm_in_channels")
_HEADS = {"sd15": {"num_heads": 4}, "sdxl": {"num_heads": -1, "num_head_channels": 16}}


def make_detectable(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """ComfyUI tells a UNet by its widths: for this test it knows the tiny family's too."""
    base = tiny.FAMILIES[family]
    widths = {name: base.unet_config[name] for name in _DETECTED_BY}
    members = {"unet_config": widths, "unet_extra_config": _HEADS[family]}
    detected = type(base.__name__, (base,), members)
    monkeypatch.setattr(
        comfy.supported_models, "models", [detected, *comfy.supported_models.models]
    )


def write(folder: str, name: str, tensors: dict[str, Tensor]) -> str:
    """A safetensors file in one of ComfyUI's folders; returns its name in the combos."""
    path = Path(folder_paths.get_folder_paths(folder)[0], f"{name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)
    return path.name


def write_lora(name: str, model: Any, clip: Any, rank: int = 2, seed: int = 9) -> str:
    """A LoRA on every attention layer of the UNet and of the text encoders."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for prefix, weight in {**_unet_layers(model), **_text_layers(clip)}.items():
        down = torch.randn(rank, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], rank, generator=generator)
        tensors[f"{prefix}.lora_down.weight"] = down * weight.shape[1] ** -0.5
        tensors[f"{prefix}.lora_up.weight"] = up * 0.5
        tensors[f"{prefix}.alpha"] = torch.tensor(float(rank))
    return write("loras", name, tensors)


def _unet_layers(model: Any) -> dict[str, Tensor]:
    return {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): weight
        for key, weight in model.model.diffusion_model.state_dict().items()
        if ".attn" in key and key.endswith(".weight")
    }


def _text_layers(clip: Any) -> dict[str, Tensor]:
    encoders = {"clip_l": "lora_te_", "clip_g": None}
    if hasattr(clip.cond_stage_model, "clip_g"):
        encoders = {"clip_l": "lora_te1_", "clip_g": "lora_te2_"}
    return {
        prefix + key.removesuffix(".weight").replace(".", "_"): weight
        for encoder, prefix in encoders.items()
        if prefix is not None
        for key, weight in getattr(clip.cond_stage_model, encoder).transformer.state_dict().items()
        if "self_attn" in key and key.endswith(".weight")
    }
