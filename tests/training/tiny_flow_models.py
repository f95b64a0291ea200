"""Tiny pipelines of flow transformers, of the real classes of diffusers and transformers.

Their transformers have the layouts of the tiny ones in `tests/comfy/tiny_transformers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_models import randomise
from tiny_text_encoders import (
    CLIP_G,
    CLIP_L,
    QWEN,
    TEXT,
    clip_config,
    clip_tokenizer,
    qwen_tokenizer,
    t5,
    t5_tokenizer,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)


def randomise_all(module: torch.nn.Module, seed: int, gain: float = 1.7) -> torch.nn.Module:
    """Weights strong enough for one token among hundreds to be seen."""
    with torch.no_grad():
        for parameter in randomise(module, seed).parameters():
            if parameter.ndim > 1:
                parameter *= gain
    return module


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
        text_encoder=randomise(CLIPTextModel(clip_config(CLIP_L)), 3),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=randomise_all(model, 1),
    )


def _sd3(text_width: int = 64, **transformer: Any) -> StableDiffusion3Pipeline:
    model = SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        caption_projection_dim=128,
        pooled_projection_dim=CLIP_L + CLIP_G,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
        **transformer,
    )
    tokenizer = clip_tokenizer()
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=randomise(CLIPTextModelWithProjection(clip_config(CLIP_L)), 3),
        tokenizer=tokenizer,
        text_encoder_2=randomise(CLIPTextModelWithProjection(clip_config(CLIP_G)), 4),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(text_width),
        tokenizer_3=t5_tokenizer(),
        transformer=randomise_all(model, 1),
    )


def _video_vae(kind: Any = AutoencoderKLQwenImage) -> Any:
    statistics = {"latents_mean": [0.1 * i for i in range(16)], "latents_std": [1.5, 0.7] * 8}
    return randomise(kind(base_dim=8, z_dim=16, num_res_blocks=1, **statistics), 2)


def _qwen_image(**transformer: Any) -> QwenImagePipeline:
    model = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
        **transformer,
    )
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    text = {
        **QWEN,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6},
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**eyes, "out_hidden_size": TEXT, "fullatt_block_indexes": [0]},
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9),
        vae=_video_vae(),
        text_encoder=randomise(Qwen2_5_VLForConditionalGeneration(config), 7),
        tokenizer=qwen_tokenizer(),
        transformer=randomise_all(model, 1),
    )


def _z_image(**transformer: Any) -> ZImagePipeline:
    model = ZImageTransformer2DModel(
        in_channels=16,
        dim=256,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[32, 48, 48],
        **transformer,
    )
    config = Qwen3Config(**QWEN, head_dim=16, vocab_size=151936)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=randomise(Qwen3Model(config), 7),
        tokenizer=qwen_tokenizer(),
        transformer=randomise_all(model, 1),
    )


def _cosmos_predict2(**transformer: Any) -> Cosmos2TextToImagePipeline:
    model = CosmosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        mlp_ratio=2.0,
        text_embed_dim=TEXT,
        adaln_lora_dim=16,
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
        **transformer,
    )
    return Cosmos2TextToImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        vae=_video_vae(AutoencoderKLWan),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        transformer=randomise_all(model, 1),
        safety_checker=torch.nn.Identity(),
    )


def _wan(tokenizer: Any = None, **transformer: Any) -> WanPipeline:
    """T5's tokenizer stands in for UMT5's, of which ComfyUI has none."""
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        **transformer,
    )
    config = UMT5Config(d_model=TEXT, d_ff=48, d_kv=8, num_heads=2, num_layers=2, vocab_size=32128)
    return WanPipeline(
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=_video_vae(AutoencoderKLWan),
        text_encoder=randomise(UMT5EncoderModel(config), 7),
        tokenizer=tokenizer or t5_tokenizer(),
        transformer=randomise_all(model, 1),
    )


PIPELINES: dict[str, Callable[..., Any]] = {
    "flux": _flux,
    "sd3": _sd3,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
    "cosmos_predict2": _cosmos_predict2,
    "wan": _wan,
}


def tiny_flow_pipeline(family: str, **changes: Any) -> Any:
    """`changes` replace entries of the transformer's configuration."""
    return PIPELINES[family](**changes)
