"""The tiny world's models in ComfyUI: MODEL, CLIP, VAE and CLIP vision of ComfyUI's own classes.

| part         | what                                                                                |
|--------------|-------------------------------------------------------------------------------------|
| base models  | a UNet and two transformers: `bases.py`                                             |
| text encoder | CLIP's text model, 2 layers, with the real CLIP tokenizer                           |
| VAE          | invertible: blocks of 4x4 pixels become 48 channels                                 |
| image encoder| CLIP's vision model at 32 pixels, blocks of 4x4 pixels                              |

Must be imported behind ComfyUI.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from .bases import BASES
from .bases import BLOCK as BLOCK
from .bases import LATENT_CHANNELS as LATENT_CHANNELS
from .bases import TEXT_DIM as TEXT_DIM
from .bases import TIME_SHIFT as TIME_SHIFT
from .files import BASE_FILE as BASE_FILE
from .files import ENCODER_FILE as ENCODER_FILE
from .files import FILES as FILES
from .files import UNET as UNET
from .files import VISION_FILE as VISION_FILE
from .files import WEIGHTS as WEIGHTS
from .files import weights_file

TEXT_CONFIG = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": 2 * TEXT_DIM,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": TEXT_DIM,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_CONFIG = {
    "hidden_size": 96,
    "image_size": 32,
    "patch_size": BLOCK,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "projection_dim": 64,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
}
VOCABULARY_SIZE = 49408


class TextEncoder(comfy.sd1_clip.SD1CheckpointClipModel):
    """ComfyUI's CLIP-L, with tokens of zero behind the end of the text: padding says nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.zero_out_masked = True


class Tokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's, whose pieces of words are as long as what they stand for: its vocabulary marks the ends
    of words, and the tokenizers whose names it bears do not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inv_vocab = {
            each: piece.removesuffix("</w>") for each, piece in self.inv_vocab.items()
        }


class InvertibleVAE:
    """A VAE for ComfyUI's nodes that only rearranges pixels."""

    latent_channels = LATENT_CHANNELS
    latent_dim = 2

    def encode(self, pixels_bhwc: Tensor) -> Tensor:
        """`[batch, height, width, 3]` in [0, 1] to `[batch, 48, height / 4, width / 4]`.

        What is over a multiple of 4 is cut off.
        """
        height, width = (size // BLOCK * BLOCK for size in pixels_bhwc.shape[1:3])
        pixels = pixels_bhwc[:, :height, :width, :3].movedim(-1, 1)
        return functional.pixel_unshuffle(pixels * 2.0 - 1.0, BLOCK)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse, clamped to [0, 1]. Of a video the first frame."""
        latents = latents[:, :, 0] if latents.ndim == 5 else latents
        pixels = functional.pixel_shuffle(latents, BLOCK).movedim(1, -1)
        return ((pixels + 1.0) / 2.0).clamp(0.0, 1.0)

    def spacial_compression_encode(self) -> int:
        return BLOCK

    def spacial_compression_decode(self) -> int:
        return BLOCK


def load_model(weights: Path = WEIGHTS, name: str = UNET) -> ModelPatcher:
    """MODEL, one of `BASES`."""
    base = BASES[name]
    config = base.config(dict(base.config.unet_config))
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=comfy.model_management.unet_offload_device())
    model.diffusion_model.load_state_dict(
        part_of(weights_file(weights, base.files.base), base.prefix)
    )
    model.eval()
    return ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def load_clip(weights: Path = WEIGHTS, name: str = UNET) -> comfy.sd.CLIP:
    """CLIP. Words that the world never uses stay unspoken: their embedding is zero.

    One text encoder for all base models, each of which knows it by another name.
    """
    key = BASES[name].tokenizer
    part = f"clip_{key}"
    is_clip = key == "l"

    class Target:
        params: ClassVar[dict[str, Any]] = {}
        clip = partial(comfy.sd1_clip.SD1ClipModel, clip_name=key, clip_model=TextEncoder)
        tokenizer = partial(
            comfy.sd1_clip.SD1Tokenizer,
            clip_name=key,
            tokenizer=comfy.sd1_clip.SDTokenizer if is_clip else Tokenizer,
        )

    clip = comfy.sd.CLIP(Target, model_options={f"{part}_model_config": TEXT_CONFIG})
    text = part_of(weights_file(weights, BASE_FILE), "text.")
    embedding = torch.zeros(VOCABULARY_SIZE, TEXT_DIM)
    embedding[text.pop("token_ids").long()] = text.pop("token_embedding").float()
    text["text_model.embeddings.token_embedding.weight"] = embedding
    transformer = getattr(clip.cond_stage_model, part).transformer
    missing, unexpected = transformer.load_state_dict(text, strict=False)
    assert set(missing) <= {"text_projection.weight"}, missing
    assert not unexpected, unexpected
    torch.nn.init.eye_(transformer.text_projection.weight)
    return clip


def load_vae() -> InvertibleVAE:
    """VAE."""
    return InvertibleVAE()


def load_clip_vision(weights: Path = WEIGHTS) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION."""
    state = load_file(weights_file(weights, VISION_FILE))
    with tempfile.TemporaryDirectory() as folder:  # the oldest host reads a file only
        path = Path(folder, "config.json")
        path.write_text(json.dumps(VISION_CONFIG), encoding="utf-8")
        vision = comfy.clip_vision.ClipVisionModel(str(path))
    vision.model.load_state_dict(state)
    return vision


def part_of(file: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of the base model's file under this prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(file).items()
        if name.startswith(prefix)
    }
