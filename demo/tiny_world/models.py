"""The tiny world's base model in ComfyUI: UNet, CLIP, VAE and CLIP vision of ComfyUI's own classes.

| part         | what                                                                                |
|--------------|-------------------------------------------------------------------------------------|
| UNet         | ComfyUI's `UNetModel`, SD1.5's layout in small, flow matching, 48 channels, 8x8 grid |
| text encoder | CLIP's text model, 2 layers, with the real CLIP tokenizer                           |
| VAE          | invertible: blocks of 4x4 pixels become 48 channels                                 |
| image encoder| CLIP's vision model at 32 pixels, blocks of 4x4 pixels                              |

Must be imported behind ComfyUI.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from .files import BASE_FILE as BASE_FILE
from .files import ENCODER_FILE as ENCODER_FILE
from .files import VISION_FILE as VISION_FILE
from .files import WEIGHTS as WEIGHTS
from .files import weights_file

BLOCK = 4  # pixels on a side that become one cell of the latent
LATENT_CHANNELS = 3 * BLOCK**2
TEXT_DIM = 128
# The time shift of flow matching (arXiv:2403.03206, section 5.3.2). The pixels of a part are alike,
# so that their mean shows through much noise; without the shift, few steps would need the words.
TIME_SHIFT = 6.0

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


class PixelBlocks(comfy.latent_formats.LatentFormat):
    """Latents of pictures in [-1, 1] whose 4x4 blocks of pixels became channels."""

    latent_channels = LATENT_CHANNELS
    spacial_downscale_ratio = BLOCK


class TinyWorld(comfy.supported_models.SD15):
    """The layout of SD1.5 with two levels of equal width: 7 attention sites."""

    unet_config: ClassVar[dict[str, Any]] = {
        "image_size": 32,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "model_channels": 96,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": TEXT_DIM,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "adm_in_channels": None,
        "legacy": False,
        "dtype": torch.float32,
    }
    unet_extra_config: ClassVar[dict[str, Any]] = {"num_heads": 4, "num_head_channels": -1}
    sampling_settings: ClassVar[dict[str, Any]] = {"shift": TIME_SHIFT}
    latent_format = PixelBlocks

    def model_type(self, state_dict: Any, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.FLOW

    def inpaint_model(self) -> bool:
        # ComfyUI takes every UNet of more than 4 input channels for one that is also fed a mask.
        return False


class TextEncoder(comfy.sd1_clip.SD1CheckpointClipModel):
    """ComfyUI's CLIP-L, with tokens of zero behind the end of the text: padding says nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.zero_out_masked = True


class ClipModel(comfy.sd1_clip.SD1ClipModel):
    """The text encoder behind ComfyUI's CLIP socket."""

    def __init__(self, **options: Any) -> None:
        super().__init__(clip_model=TextEncoder, **options)


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
        """The inverse, clamped to [0, 1]."""
        pixels = functional.pixel_shuffle(latents, BLOCK).movedim(1, -1)
        return ((pixels + 1.0) / 2.0).clamp(0.0, 1.0)

    def spacial_compression_encode(self) -> int:
        return BLOCK

    def spacial_compression_decode(self) -> int:
        return BLOCK


def unet_module() -> UNetModel:
    """ComfyUI's UNet in the layout of the world, with weights that nobody initialised."""
    config = {**TinyWorld.unet_config, **TinyWorld.unet_extra_config}
    del config["use_temporal_attention"]
    return UNetModel(**config, operations=comfy.ops.manual_cast, device=torch.device("cpu"))


def load_model(weights: Path = WEIGHTS) -> ModelPatcher:
    """MODEL."""
    config = TinyWorld(dict(TinyWorld.unet_config))
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=comfy.model_management.unet_offload_device())
    model.diffusion_model.load_state_dict(part_of(weights_file(weights, BASE_FILE), "unet."))
    model.eval()
    return ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def load_clip(weights: Path = WEIGHTS) -> comfy.sd.CLIP:
    """CLIP. Words that the world never uses stay unspoken: their embedding is zero."""

    class Target:
        params: ClassVar[dict[str, Any]] = {}
        clip, tokenizer = ClipModel, comfy.sd1_clip.SD1Tokenizer

    clip = comfy.sd.CLIP(Target, model_options={"clip_l_model_config": TEXT_CONFIG})
    text = part_of(weights_file(weights, BASE_FILE), "text.")
    embedding = torch.zeros(VOCABULARY_SIZE, TEXT_DIM)
    embedding[text.pop("token_ids").long()] = text.pop("token_embedding").float()
    text["text_model.embeddings.token_embedding.weight"] = embedding
    transformer = clip.cond_stage_model.clip_l.transformer
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
