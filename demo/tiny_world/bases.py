"""The tiny world's base models as ComfyUI knows them: its own classes, in small.

| name    | what                                                                               |
|---------|------------------------------------------------------------------------------------|
| `unet`  | `UNetModel`, SD1.5's layout in small                                               |
| `joint` | `Flux`: text and pixels in one attention, three double and three single blocks     |
| `cross` | `WanModel`: four blocks, each with a self-attention and one to the text            |

All of them see 48 channels on a grid of 8x8 cells, and are trained by flow matching. The transformers
read the same text as the UNet, under the name of a tokenizer that their families have.

Must be imported behind ComfyUI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from torch import Tensor

from .files import FILES, UNET, ModelFiles

BLOCK = 4  # pixels on a side that become one cell of the latent
LATENT_CHANNELS = 3 * BLOCK**2
TEXT_DIM = 128
# The time shift of flow matching (arXiv:2403.03206, section 5.3.2). The pixels of a part are alike,
# so that their mean shows through much noise; without the shift, few steps would need the words.
TIME_SHIFT = 6.0


class PixelBlocks(comfy.latent_formats.LatentFormat):
    """Latents of pictures in [-1, 1] whose 4x4 blocks of pixels became channels."""

    latent_channels = LATENT_CHANNELS
    spacial_downscale_ratio = BLOCK


class PixelBlocksOfFrames(PixelBlocks):
    """The same for a model of videos: a picture is one frame."""

    latent_dimensions = 3


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


class JointWorld(comfy.supported_models.FluxSchnell):
    """The layout of Flux, a cell of the latent for each patch: 6 sites."""

    unet_config: ClassVar[dict[str, Any]] = {
        "image_model": "flux",
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "vec_in_dim": None,
        "context_in_dim": TEXT_DIM,
        "hidden_size": 128,
        "mlp_ratio": 2.0,
        "num_heads": 4,
        "depth": 3,
        "depth_single_blocks": 3,
        "axes_dim": [4, 14, 14],
        "theta": 100,  # 8 cells from side to side, not hundreds
        "patch_size": 1,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
        "dtype": torch.float32,
    }
    sampling_settings: ClassVar[dict[str, Any]] = {"multiplier": 1.0, "shift": TIME_SHIFT}
    latent_format = PixelBlocks


class _PlacedWan(comfy.model_base.WAN21):
    """Tells the network where each cell lies, in two more channels.

    Wan's positions are those of cells to each other, and among cells of pure noise that says nothing:
    such a model could not put a subject at the left.
    """

    def concat_cond(self, **kwargs: Any) -> Tensor:
        return places_like(kwargs["noise"])


def places_like(latents: Tensor) -> Tensor:
    """Row and column of each cell, `[batch, 2, (frames,) height, width]`."""
    ends = (
        torch.linspace(-1.7, 1.7, latents.shape[-2]),
        torch.linspace(-1.7, 1.7, latents.shape[-1]),
    )
    places = torch.stack(torch.meshgrid(*ends, indexing="ij")).to(latents)
    shape = (len(latents), 2, *latents.shape[2:])
    return places[None, :, None].expand(shape) if latents.ndim == 5 else places.expand(shape)


class CrossWorld(comfy.supported_models.WAN21_T2V):
    """The layout of Wan, a cell of the latent for each patch: 4 sites."""

    unet_config: ClassVar[dict[str, Any]] = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": (1, 1, 1),
        "in_dim": LATENT_CHANNELS + 2,
        "out_dim": LATENT_CHANNELS,
        "dim": 128,
        "ffn_dim": 256,
        "freq_dim": 64,
        "text_dim": TEXT_DIM,
        "num_heads": 4,
        "num_layers": 4,
        "dtype": torch.float32,
    }
    sampling_settings: ClassVar[dict[str, Any]] = {"shift": TIME_SHIFT}
    latent_format = PixelBlocksOfFrames

    def get_model(self, *_: Any, device: Any = None, **__: Any) -> comfy.model_base.BaseModel:
        return _PlacedWan(self, device=device)


@dataclass(frozen=True)
class Base:
    """One of the base models.

    Attributes:
        config: how ComfyUI describes it.
        network: the class of its `diffusion_model`.
        tokenizer: the name under which its text encoder comes.
        files: of its weights and its encoder.
        prefix: of the network's tensors in the file.
    """

    config: type
    network: type
    tokenizer: str
    files: ModelFiles
    prefix: str

    def new_network(self, operations: Any = comfy.ops.manual_cast) -> Any:
        """The network, with weights that nobody initialised."""
        config: dict[str, Any] = {**self.config.unet_config, **self.config.unet_extra_config}
        config.pop("use_temporal_attention", None)
        return self.network(**config, operations=operations, device=torch.device("cpu"))


BASES: Mapping[str, Base] = {
    UNET: Base(TinyWorld, UNetModel, "l", FILES[UNET], "unet."),
    "joint": Base(JointWorld, Flux, "t5xxl", FILES["joint"], "transformer."),
    "cross": Base(CrossWorld, WanModel, "umt5xxl", FILES["cross"], "transformer."),
}
