"""Tiny pipelines of flow transformers, of the real classes of diffusers and transformers.

Their transformers have the layouts of the tiny ones in `tests/comfy/tiny_transformers.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tiny_models import randomise
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIP_L, CLIP_G, TEXT = 16, 32, 24  # widths


def host_folder() -> Path:
    """ComfyUI, whose tokenizers these pipelines use."""
    return Path(os.environ.get("NESTED_ATTENTION_HOST") or os.environ["COMFYUI_PATH"])


def _tokenizers(name: str) -> Path:
    return host_folder() / "comfy" / "text_encoders" / name


def randomise_all(module: torch.nn.Module, seed: int, gain: float = 1.7) -> torch.nn.Module:
    """Weights strong enough for one token among hundreds to be seen."""
    with torch.no_grad():
        for parameter in randomise(module, seed).parameters():
            if parameter.ndim > 1:
                parameter *= gain
    return module


def _clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        host_folder() / "comfy" / "sd1_tokenizer", model_max_length=77
    )


def _t5(width: int = TEXT, **options: Any) -> T5EncoderModel:
    config = T5Config(
        d_model=width, d_ff=48, d_kv=8, num_heads=2, num_layers=2, vocab_size=32128, **options
    )
    return randomise(T5EncoderModel(config), 7)


def _t5_tokenizer() -> Any:
    return T5TokenizerFast.from_pretrained(_tokenizers("t5_tokenizer"))


def _vae() -> AutoencoderKL:
    """Latents 8 times smaller than the picture."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        layers_per_block=1,
        shift_factor=0.1,
        scaling_factor=0.4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomise(vae, 2)


def _flux(**transformer: Any) -> FluxPipeline:
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=CLIP_L,
        axes_dims_rope=(4, 6, 6),
        **{"guidance_embeds": True, **transformer},
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=randomise(CLIPTextModel(_clip_config(CLIP_L)), 3),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=randomise_all(model, 1),
    )


PIPELINES: dict[str, Callable[..., Any]] = {"flux": _flux}


def tiny_flow_pipeline(family: str, **transformer: Any) -> Any:
    """`transformer` replaces entries of its configuration."""
    return PIPELINES[family](**transformer)
