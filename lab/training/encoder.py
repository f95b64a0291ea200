"""The run of an encoder on the tiny world, by the trainer of `nested_core.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_world.files import UNET

from nested_core.training.config import TrainingConfig
from nested_core.training.processes import make_accelerator
from nested_core.training.trainer import Trainer

from .data import SubjectData
from .host import TinyWorldHost, base_name


def encoder_config(output: Path, name: str = UNET, **changes: Any) -> TrainingConfig:
    """Settings of the shipped encoder of a base model; keyword arguments replace them."""
    settings: dict[str, Any] = {
        "output": str(output),
        "base": base_name(name),
        "image_encoder": "tiny_world",
        "data": "tiny_world",
        "noun": "person",
        "num_queries": 16,
        # Without a norm the subject is kept better here: docs/evaluation.md.
        "value_norm": "none",
        "resampler_dim": 128,
        "resampler_depth": 2,
        "resampler_heads": 4,
        "resampler_dim_head": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "ema_decay": 0.998,
        "region_weight": 3.0,
        "save_every": 250,
        "save_precision": "float32",
        "log_every": 50,
        "sample_every": 0,
        "tensorboard": False,
        **changes,
    }
    return TrainingConfig(**settings)


def train_encoder(config: TrainingConfig, host: TinyWorldHost) -> int:
    """The exit status; the run goes on where it stopped."""
    data = SubjectData(config.batch_size, config.seed, config.drop_image, config.drop_text)
    trainer = Trainer(config, host, data, make_accelerator(config))
    trainer.begin(resume=True)
    return trainer.run()
