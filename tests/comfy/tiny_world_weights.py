"""Weights of the tiny world that nobody trained. Imported after ComfyUI and the demo's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from tiny_world import models
from tiny_world.files import FILES, UNET

from lab.training.encoder import encoder_config
from lab.training.host import BaseModel, TinyWorldHost, vision_model
from nested_core.checkpoint import save_encoder
from nested_core.encoder import Encoder


def random_weights(folder: Path, name: str = UNET) -> Path:
    """The folder, with random weights in the files of a base model.

    Args:
        name: one of `FILES`. The UNet's file, which has the text encoder, is there for all of them.
    """
    torch.manual_seed(0)
    for each in dict.fromkeys((UNET, name)):
        base = BaseModel(each)
        tiny.randomise(base.denoiser, seed=1, gain=1.7)
        # ComfyUI keeps text and image encoders in half precision, whatever the file has.
        base.save(folder / FILES[each].base, torch.float16)
    vision = {key: each.half().contiguous() for key, each in vision_model().state_dict().items()}
    save_file(vision, folder / models.VISION_FILE)
    host = TinyWorldHost(folder, name)
    settings = encoder_config(folder, name, num_queries=5, resampler_dim=32, resampler_depth=1)
    config = settings.encoder_config(host.base, host.image_encoder, host.text_dim)
    config = replace(config, family=host.family.name)
    encoder = Encoder(config, host.site_dims, "tiny")
    save_encoder(encoder, folder / FILES[name].encoder)
    return folder
