"""Tiny pipelines of the real classes of diffusers and transformers, random weights from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

RESOLUTION = 64
TEXT_WIDTH = {"sd15": 16, "sdxl": 16 + 32}
_UNETS: dict[str, dict[str, Any]] = {
    # Both have the layout of the tiny UNets that the tests of the nodes use.
    "sd15": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,  # heads, in spite of the name
    },
    "sdxl": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [2, 4, 4],  # heads of 16 channels, as in ComfyUI's tiny SDXL
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 32 + 6 * 256,
    },
}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that keep activations near unit size, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                values *= parameter[0].numel() ** -0.5
            else:
                values = values * 0.1 + (1.0 if "norm" in name and "weight" in name else 0.0)
            parameter.copy_(values)
    return module


def tiny_unet(family: str) -> UNet2DConditionModel:
    return randomise(
        UNet2DConditionModel(
            sample_size=32,
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH[family],
            norm_num_groups=32,
            **_UNETS[family],
        ),
        1,
    )


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def tiny_pipeline(family: str, tokenizer_folder: Path, **scheduler: Any) -> Any:
    """A pipeline that learns and draws at 64 pixels: latents are 8 times smaller."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=77)
    parts: dict[str, Any] = {
        "unet": tiny_unet(family),
        "vae": randomise(vae, 2),
        "text_encoder": randomise(CLIPTextModel(_text_config(16)), 3),
        "tokenizer": tokenizer,
        "scheduler": DDPMScheduler(
            beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, **scheduler
        ),
    }
    if family == "sd15":
        nothing = {"safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**parts, **nothing, requires_safety_checker=False)
    parts["text_encoder_2"] = randomise(CLIPTextModelWithProjection(_text_config(32)), 4)
    return StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer, add_watermarker=False)


def save_tiny_base(family: str, folder: Path, tokenizer_folder: Path) -> None:
    tiny_pipeline(family, tokenizer_folder).save_pretrained(folder)


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=24,
        image_size=32,
        patch_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        projection_dim=16,
        hidden_act="gelu",
    )
    return randomise(CLIPVisionModelWithProjection(config), 5)


def save_tiny_image_encoder(folder: Path) -> None:
    tiny_image_encoder().save_pretrained(folder)


def write_picture(path: Path, seed: int, size: tuple[int, int] = (80, 72)) -> None:
    """Random blocks of colour."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (4, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path)


def write_examples(folder: Path) -> Path:
    """A data folder of six pictures; the last has references of its own and a mask."""
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for index in range(6):
        write_picture(folder / f"{index}.png", index)
        lines.append(
            {"file_name": f"{index}.png", "text": f"a photo of {{subject}} number {index}"}
        )
    mask = Image.new("L", (80, 72), 0)
    mask.paste(255, (10, 10, 50, 60))
    mask.save(folder / "mask.png")
    lines[5] |= {"reference": ["0.png", "1.png"], "mask": "mask.png"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def tiny_settings(output: Path, base: Path, image_encoder: Path, data: Path) -> dict[str, Any]:
    """Settings of a run of four steps on tiny models."""
    return {
        "output": str(output),
        "base": str(base),
        "image_encoder": str(image_encoder),
        "data": str(data),
        "resolution": RESOLUTION,
        "workers": 0,
        "num_queries": 3,
        "resampler_dim": 16,
        "resampler_depth": 1,
        "resampler_heads": 2,
        "resampler_dim_head": 8,
        "steps": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "save_precision": "float32",
        "log_every": 1,
        "tensorboard": False,
        "sample_every": 0,
    }


def checkpoint_contents(folder: Path) -> dict[str, Any]:
    """The bytes of a checkpoint's files by name."""
    contents: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in [name for name in contents if name.startswith("generators")]:
        # Python's generator is left out: the checks of types and shapes in the tests draw from it.
        contents[name] = {**json.loads(contents[name]), "python": None}
    return contents
