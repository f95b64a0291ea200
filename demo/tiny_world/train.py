"""Trains the tiny world: image encoder, base model, encoder for Nested Attention.

    python dev.py exec --tools demo/tiny_world/train.py --preset cpu --output FOLDER

Each part goes on where it stopped; Ctrl-C or SIGTERM lets a checkpoint be written first. The base
model must pass the gate before an encoder is trained on it: naming every part's colour gains at
least 6 dB on the subject. At the end FOLDER holds the files of `demo/tiny_world/weights`.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(os.environ["NESTED_ATTENTION_ROOT"])
# Behind ComfyUI's folder: the checkout's `nodes` must not hide ComfyUI's.
sys.path += [str(ROOT), str(ROOT / "demo")]

import torch  # noqa: E402

from nested_core.training.config import TrainingConfig  # noqa: E402
from nested_core.training.processes import make_accelerator  # noqa: E402
from nested_core.training.trainer import Trainer  # noqa: E402
from tiny_world import models  # noqa: E402
from tiny_world.base_training import BaseTrainer, BaseTraining  # noqa: E402
from tiny_world.data import SubjectData  # noqa: E402
from tiny_world.gate import hearing  # noqa: E402
from tiny_world.host import BaseModel, TinyWorldHost  # noqa: E402
from tiny_world.vision_training import VisionTraining, train_vision  # noqa: E402

GATE_DB = 6.0
log = logging.getLogger("tiny_world")


@dataclass(frozen=True)
class Preset:
    """How long everything is trained, and by how many processes."""

    vision: VisionTraining
    base: BaseTraining
    encoder: dict[str, object] = field(default_factory=dict)
    processes: int = 1


PRESETS = {
    # Two processes of one thread each: convolutions this small gain little from a second thread.
    "cpu": Preset(
        VisionTraining(steps=1000),
        BaseTraining(steps=5000),
        {"steps": 8000, "batch_size": 8},
        processes=2,
    ),
    "gpu": Preset(
        VisionTraining(steps=2000),
        BaseTraining(steps=12_000, batch_size=64),
        {"steps": 6000, "batch_size": 64},
    ),
    "test": Preset(
        VisionTraining(steps=2, batch_size=4),
        BaseTraining(
            steps=2, batch_size=4, warmup_steps=1, save_every=1, gate_every=2, log_every=1
        ),
        {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    ),
}


def encoder_config(output: Path, **changes: object) -> TrainingConfig:
    """Settings of the shipped encoder; keyword arguments replace them."""
    settings: dict[str, object] = {
        "output": str(output),
        "base": TinyWorldHost.base,
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
    return TrainingConfig(**settings)  # type: ignore[arg-type]


def train_encoder(config: TrainingConfig, host: TinyWorldHost) -> int:
    """The trainer of `nested_core.training` on the tiny world; goes on where it stopped."""
    data = SubjectData(config.batch_size, config.seed, config.drop_image, config.drop_text)
    trainer = Trainer(config, host, data, make_accelerator(config))
    trainer.begin(resume=True)
    return trainer.run()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="how long and on what")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--part", choices=("all", "vision", "base", "encoder"), default="all")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    if preset.processes > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(preset.processes)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, force=True)
    parts = ("vision", "base", "encoder") if options.part == "all" else (options.part,)
    for part in parts:
        status = _PARTS[part](preset, options.output)
        if status:
            return status
    return 0


def _launch(processes: int) -> int:
    """This script again, once per process."""
    launcher = ROOT / "devtools" / "launch.py"
    flags = ["--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, launcher, __file__]
    # Without it accelerate takes each process for a run of its own.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.call([*map(str, command), *sys.argv[1:]], env=environment)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _vision(preset: Preset, output: Path) -> int:
    if _is_first() and not (output / models.VISION_FILE).exists():
        train_vision(preset.vision, output)
    return 0


def _base(preset: Preset, output: Path) -> int:
    accelerator = make_accelerator(encoder_config(output / "base"))
    finished = BaseTrainer(preset.base, output / "base", accelerator).run()
    accelerator.wait_for_everyone()
    if not finished:
        return 1
    if accelerator.is_main_process:
        shutil.copy(output / "base" / models.BASE_FILE, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _encoder(preset: Preset, output: Path) -> int:
    host = TinyWorldHost(output)
    if preset is not PRESETS["test"] and not _passes_gate(host.model):
        return 1
    run = output / "encoder"
    status = train_encoder(encoder_config(run, **preset.encoder), host)
    if status == 0 and _is_first():
        shutil.copy(run / models.ENCODER_FILE, output)
    return status


def _passes_gate(model: BaseModel) -> bool:
    heard = hearing(model)
    gain = heard["subject_all"] - heard["subject_none"]
    log.info("gate: naming all parts gains %.1f dB on the subject, %.1f are needed", gain, GATE_DB)
    return gain >= GATE_DB


_PARTS = {"vision": _vision, "base": _base, "encoder": _encoder}


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
