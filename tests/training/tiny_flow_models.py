"""Tiny pipelines of flow transformers, of the real classes of diffusers and transformers.

Their transformers have the layouts of the tiny ones in `tests/comfy/tiny_transformers.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

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
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

CLIP_L, CLIP_G, TEXT = 16, 32, 24  # widths
_T5_WORDS = 32128


def host_folder() -> Path:
    """ComfyUI, whose tokenizers these pipelines use."""
    return Path(os.environ.get("NESTED_ATTENTION_HOST") or os.environ["COMFYUI_PATH"])


def _tokenizers(name: str) -> Path:
    return host_folder() / "comfy" / "text_encoders" / name


@contextmanager
def tokenizers_read_once() -> Generator[None, None, None]:
    """Each folder's, which takes a second."""
    base, read = PreTrainedTokenizerBase, PreTrainedTokenizerBase.__dict__["from_pretrained"]
    known: dict[Any, Any] = {}

    def from_pretrained(cls: Any, folder: Any, *arguments: Any, **options: Any) -> Any:
        key = cls, str(folder)
        if key not in known:
            known[key] = read.__get__(None, cls)(folder, *arguments, **options)
        return known[key]

    with mock.patch.object(base, "from_pretrained", classmethod(from_pretrained)):
        yield


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


@functools.cache
def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        host_folder() / "comfy" / "sd1_tokenizer", model_max_length=77
    )


def _t5(width: int = TEXT, **options: Any) -> T5EncoderModel:
    """Its vocabulary repeats itself: at SD3's width, half a gigabyte of others would take seconds."""
    repeated = 64
    config = T5Config(
        d_model=width, d_ff=48, d_kv=8, num_heads=2, num_layers=2, vocab_size=repeated, **options
    )
    model = randomise(T5EncoderModel(config), 7)
    rows = model.get_input_embeddings().weight.data.repeat(_T5_WORDS // repeated, 1)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows))
    model.config.vocab_size = _T5_WORDS
    return model


@functools.cache
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
    tokenizer = _clip_tokenizer()
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=randomise(CLIPTextModelWithProjection(_clip_config(CLIP_L)), 3),
        tokenizer=tokenizer,
        text_encoder_2=randomise(CLIPTextModelWithProjection(_clip_config(CLIP_G)), 4),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(text_width),
        tokenizer_3=_t5_tokenizer(),
        transformer=randomise_all(model, 1),
    )


_QWEN: dict[str, Any] = {
    "hidden_size": TEXT,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# Qwen3's, for a prompt alone; the tokenizer that ComfyUI ships is Qwen2.5's.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)


@functools.cache
def _qwen_tokenizer() -> Any:
    tokenizer = Qwen2TokenizerFast.from_pretrained(_tokenizers("qwen25_tokenizer"))
    tokenizer.chat_template = _CHAT
    return tokenizer


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
        **_QWEN,
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
        tokenizer=_qwen_tokenizer(),
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
    config = Qwen3Config(**_QWEN, head_dim=16, vocab_size=151936)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(),
        text_encoder=randomise(Qwen3Model(config), 7),
        tokenizer=_qwen_tokenizer(),
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
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
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
        tokenizer=tokenizer or _t5_tokenizer(),
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
