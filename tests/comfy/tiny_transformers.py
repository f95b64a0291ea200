"""Tiny random diffusion transformers and their text encoders, of the real classes of ComfyUI.

Float32 on the CPU, from seeds. ComfyUI creates weights as empty memory, so every one is drawn here:
gates and modulations, too, since a gate that is zero would hide what attention does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import comfy.ldm.anima.model
import comfy.sd
import comfy.supported_models as supported
import comfy.text_encoders.qwen_vl
import sentence_pieces
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

CPU = torch.device("cpu")
CLIP_L, CLIP_G, TEXT, ADAPTED = 16, 32, 24, 20  # widths
SD3_TEXT = 4096  # ComfyUI pads the text of SD3 to this width, whatever its encoders have
SHARPNESS = 1.7  # of queries and keys: so that one token among hundreds is seen
_PERCEPTIBLE = 1.7  # gain of weights, for the same reason
_WIDEST_DRAWN = 2**24

_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": CLIP_L,
    "context_in_dim": TEXT,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": TEXT,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "multiple_of": 8,
    "ffn_dim_multiplier": 1.0,
}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 48,
    "num_blocks": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}
_QWEN = {
    "hidden_size": TEXT,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,  # of 128, which no configuration changes
    "num_key_value_heads": 1,
}
_T5 = {"d_model": TEXT, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 2}


@dataclass(frozen=True)
class Family:
    """One family: ComfyUI's class, the layout of its blocks, the sizes of its text encoders.

    Attributes:
        parts: tensors by which ComfyUI sees which text encoders a checkpoint holds.
        pieces: the tokenizer, where ComfyUI reads it from the checkpoint.
    """

    config: type
    unet: dict[str, Any]
    text: dict[str, dict[str, Any]]
    parts: tuple[str, ...] = ()
    pieces: Callable[[], torch.Tensor] | None = None


def _clip_model(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": width * 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "projection_dim": width,
    }


FAMILIES: dict[str, Family] = {
    "flux": Family(
        supported.Flux,
        {"image_model": "flux", "guidance_embed": True, **_FLUX},
        {"clip_l": _clip_model(CLIP_L), "t5xxl": _T5},
    ),
    "chroma": Family(
        supported.Chroma,
        {
            **_FLUX,
            "image_model": "chroma",
            "in_channels": 64,  # Chroma counts those of a patch
            "out_channels": 64,
            "in_dim": 64,  # of the timestep, guidance and the number of the modulation
            "out_dim": 32,
            "hidden_dim": 32,
            "n_layers": 2,
        },
        {"t5xxl": _T5},
    ),
    "sd3": Family(
        supported.SD3,
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "input_size": None,
            "depth": 2,  # heads of 64
            "num_blocks": 3,
            "mlp_ratio": 2.0,
            "adm_in_channels": CLIP_L + CLIP_G,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": SD3_TEXT, "out_features": 128},
            },
            "num_patches": 12**2,
            "pos_embed_max_size": 12,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0, 1],  # as 3.5 medium: one more call, among pixels only
        },
        {
            "clip_l": _clip_model(CLIP_L),
            "clip_g": _clip_model(CLIP_G),
            "t5xxl": {**_T5, "d_model": SD3_TEXT},
        },
        parts=(
            "clip_l.transformer.text_model.final_layer_norm.weight",
            "clip_g.transformer.text_model.final_layer_norm.weight",
            "t5xxl.transformer.encoder.final_layer_norm.weight",
        ),
    ),
    "qwen_image": Family(
        supported.QwenImage,
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": TEXT,
            "axes_dims_rope": (4, 6, 6),
        },
        {"qwen25_7b": _QWEN},
    ),
    "lumina2": Family(
        supported.Lumina2,
        {**_LUMINA, "dim": 32, "n_heads": 2, "n_kv_heads": 1, "axes_dims": [4, 6, 6]},
        {"gemma2_2b": {**_QWEN, "vocab_size": sentence_pieces.SIZE}},
        pieces=sentence_pieces.gemma,
    ),
    "z_image": Family(
        supported.ZImage,
        {
            **_LUMINA,
            "dim": 256,  # its modulation takes no less
            "n_heads": 2,
            "n_kv_heads": 2,
            "axes_dims": [32, 48, 48],
            "rope_theta": 256.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        {"qwen3_4b": _QWEN},
    ),
    "cosmos_predict2": Family(
        supported.CosmosT2IPredict2,
        {**_COSMOS, "image_model": "cosmos_predict2", "crossattn_emb_channels": TEXT},
        {"t5xxl": _T5},
    ),
    "anima": Family(
        supported.Anima,
        {**_COSMOS, "image_model": "anima", "crossattn_emb_channels": ADAPTED},
        {"qwen3_06b": _QWEN},
    ),
    "wan": Family(
        supported.WAN21_T2V,
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 32,
            "ffn_dim": 64,
            "freq_dim": 32,
            "text_dim": TEXT,
            "num_heads": 2,
            "num_layers": 3,
        },
        {"umt5xxl": {**_T5, "vocab_size": sentence_pieces.SIZE}},
        pieces=sentence_pieces.umt5,
    ),
}


def model(
    family: str,
    seed: int = 1,
    config: type | None = None,
    weights: torch.dtype = torch.float32,
    operations: type | None = None,
    **unet: Any,
) -> ModelPatcher:
    """A MODEL of the family. `unet` replaces entries of its configuration.

    Args:
        config: ComfyUI's class of a relative, which reads the same text encoder.
        weights: what they are kept in; computed is in float32.
        operations: another pack's layers.
    """
    own = FAMILIES[family]
    made = (config or own.config)({**own.unet, **unet, "dtype": weights})
    if weights != torch.float32:
        made.set_inference_dtype(weights, torch.float32)
    made.custom_operations = operations
    adapter = functools.partial(
        comfy.ldm.anima.model.LLMAdapter,
        source_dim=TEXT,
        target_dim=ADAPTED,
        model_dim=16,
        num_layers=2,
        num_heads=2,
    )
    # Anima's model leaves its adapter no size but the full one.
    with mock.patch.object(comfy.ldm.anima.model, "LLMAdapter", adapter):
        base = made.get_model({}, device=CPU)
    randomise(base.diffusion_model, seed, _PERCEPTIBLE)
    return ModelPatcher(base, CPU, CPU)


def clip(family: str, seed: int = 2) -> comfy.sd.CLIP:
    """A CLIP: ComfyUI's tokenizers, and tiny text encoders."""
    known = FAMILIES[family]
    prefix = known.config.text_encoder_key_prefix[0]
    held = {prefix + name: torch.zeros(1) for name in known.parts}
    target = known.config(known.unet).clip_target(held)
    options = {f"{name}_model_config": sizes for name, sizes in known.text.items()}
    options["dtype"] = torch.float32
    data = {} if known.pieces is None else {"spiece_model": known.pieces()}
    # The eyes of Qwen2.5-VL have no small size; nothing here shows them a picture.
    with mock.patch.object(comfy.text_encoders.qwen_vl, "Qwen2VLVisionTransformer", nn.Identity):
        text_encoder = comfy.sd.CLIP(target, tokenizer_data=data, model_options=options)
    randomise(text_encoder.cond_stage_model, seed)
    return text_encoder


def randomise(root: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Draws all weights."""
    generator = torch.Generator().manual_seed(seed)
    stored = root.state_dict().keys()  # other buffers are computed, such as frequencies
    buffers = ((name, buffer) for name, buffer in root.named_buffers() if name in stored)
    for name, tensor in itertools.chain(root.named_parameters(), buffers):
        owner, _, own_name = name.rpartition(".")
        is_norm = "norm" in type(root.get_submodule(owner)).__name__.lower()
        if is_norm and own_name == "weight":
            values = 1.0 + 0.1 * torch.randn(tensor.shape, generator=generator)
            values *= SHARPNESS if _is_of_queries_or_keys(owner) else 1.0
        elif tensor.ndim < 2:
            values = 0.1 * torch.randn(tensor.shape, generator=generator)
        elif tensor.numel() > _WIDEST_DRAWN:
            values = _windows(tensor.shape, generator)
        else:
            values = torch.randn(tensor.shape, generator=generator)
            values *= gain * tensor[0].numel() ** -0.5
        tensor.data = values.to(tensor.dtype)


def _is_of_queries_or_keys(path: str) -> bool:
    names = {"q_norm", "k_norm", "norm_q", "norm_k", "query_norm", "key_norm"}
    return path.rpartition(".")[2] in names | {"norm_added_q", "norm_added_k", "ln_q", "ln_k"}


def _windows(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Rows that overlap in memory: a vocabulary of half a gigabyte out of a few hundred kilobytes."""
    rows, width = shape
    step = 7
    flat = torch.randn(step * (rows - 1) + width, generator=generator) * width**-0.5
    return flat.as_strided((rows, width), (step, 1))
