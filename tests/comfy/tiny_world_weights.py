"""Weights of the tiny world that nobody trained. Imported after ComfyUI and the demo's folder."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from tiny_world import models

from lab.training.encoder import encoder_config
from lab.training.host import BaseModel, TinyWorldHost, vision_model
from nested_core.checkpoint import save_encoder
from nested_core.encoder import Encoder


def random_weights(folder: Path) -> Path:
    """The folder, with random weights in the three files."""
    torch.manual_seed(0)
    base = BaseModel()
    tiny.randomise(base.module, seed=1, gain=1.7)
    base.save(folder / models.BASE_FILE, torch.float32)
    vision = {name: tensor.contiguous() for name, tensor in vision_model().state_dict().items()}
    save_file(vision, folder / models.VISION_FILE)
    host = TinyWorldHost(folder)
    config = encoder_config(folder, num_queries=5, resampler_dim=32, resampler_depth=1)
    encoder = Encoder(
        config.encoder_config(host.base, host.image_encoder, host.text_dim), host.site_dims, "tiny"
    )
    save_encoder(encoder, folder / models.ENCODER_FILE)
    return folder
