"""Trains the tiny world: image encoder, base model, encoder for Nested Attention.

    python dev.py exec --tools lab/train.py --preset cpu --output FOLDER
    python dev.py exec --tools lab/train.py --preset cpu --model joint --output FOLDER

The transformers (`--model joint`, `cross`) look and read with the image encoder and the text encoder of
the UNet's run in FOLDER, or with the shipped ones where there was none.

Each part goes on where it stopped; Ctrl-C or SIGTERM lets a checkpoint be written first. No encoder
is trained on a base model that does not listen to words: naming every part's colour must gain at
least 6 dB on the subject. At the end FOLDER holds the files of `demo/tiny_world/weights`.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(os.environ["NESTED_ATTENTION_ROOT"])
# Behind ComfyUI's folder: the checkout's `nodes` must not hide ComfyUI's.
sys.path += [str(ROOT), str(ROOT / "demo")]

import torch  # noqa: E402
from tiny_world import models  # noqa: E402
from tiny_world.files import FILES  # noqa: E402

from lab.training.base_model import BaseTrainer, BaseTraining, untrained_model  # noqa: E402
from lab.training.encoder import encoder_config, train_encoder  # noqa: E402
from lab.training.host import BaseModel, TinyWorldHost  # noqa: E402
from lab.training.image_encoder import VisionTraining, train_vision  # noqa: E402
from lab.training.text_gain import text_gain  # noqa: E402
from nested_core.training.processes import make_accelerator  # noqa: E402

LEAST_TEXT_GAIN_DB = 6.0
TRANSFORMER_LEARNING_RATE = 2e-3
log = logging.getLogger("tiny_world")


@dataclass(frozen=True)
class Preset:
    """How long everything is trained, and by how many processes."""

    vision: VisionTraining
    base: BaseTraining
    encoder: dict[str, object] = field(default_factory=dict)
    processes: int = 1
    model: str = models.UNET
    asks_for_words: bool = True

    def of(self, model: str) -> Preset:
        """The same for another base model."""
        if model == models.UNET:
            return self
        base = replace(self.base, learning_rate=TRANSFORMER_LEARNING_RATE)
        return replace(self, base=base, model=model)


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
            steps=2, batch_size=4, warmup_steps=1, save_every=1, text_gain_every=2, log_every=1
        ),
        {"steps": 2, "batch_size": 4, "warmup_steps": 1},
        asks_for_words=False,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="how long and on what")
    parser.add_argument("--model", choices=FILES, default=models.UNET, help="which base model")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--part", choices=("all", "vision", "base", "encoder"), default="all")
    options = parser.parse_args()
    preset = PRESETS[options.preset].of(options.model)
    if preset.processes > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(preset.processes)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, force=True)
    parts = ("vision", "base", "encoder") if options.part == "all" else (options.part,)
    if options.model != models.UNET and _is_first():
        _take_over(options.output)
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
    with subprocess.Popen([*map(str, command), *sys.argv[1:]], env=environment) as run:
        # Asked to stop, it asks them: they write a checkpoint first.
        signal.signal(signal.SIGTERM, lambda *_: run.terminate())
        return run.wait()


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _take_over(output: Path) -> None:
    """Image encoder and text encoder, which the transformers do not train."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (models.BASE_FILE, models.VISION_FILE):
        if not (output / name).exists():
            shutil.copy(models.WEIGHTS / name, output)


def _vision(preset: Preset, output: Path) -> int:
    if _is_first() and not (output / models.VISION_FILE).exists():
        train_vision(preset.vision, output)
    return 0


def _base(preset: Preset, output: Path) -> int:
    name = preset.model
    run, file = output / _run_name(name, "base"), FILES[name].base
    accelerator = make_accelerator(encoder_config(run, name))
    model = untrained_model(preset.base.seed, name, output)
    finished = BaseTrainer(preset.base, run, accelerator, model).run()
    accelerator.wait_for_everyone()
    if not finished:
        return 1
    if accelerator.is_main_process:
        shutil.copy(run / file, output)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _encoder(preset: Preset, output: Path) -> int:
    name = preset.model
    host = TinyWorldHost(output, name)
    if preset.asks_for_words and not _listens_to_words(host.model):
        return 1
    run = output / _run_name(name, "encoder")
    status = train_encoder(encoder_config(run, name, **preset.encoder), host)
    if status == 0 and _is_first():
        shutil.copy(run / models.ENCODER_FILE, output / FILES[name].encoder)
    return status


def _run_name(model: str, part: str) -> str:
    return part if model == models.UNET else f"{model}_{part}"


def _listens_to_words(model: BaseModel) -> bool:
    figures = text_gain(model)
    gain = figures["subject_all"] - figures["subject_none"]
    needed = LEAST_TEXT_GAIN_DB
    log.info("naming all parts gains %.1f dB on the subject, %.1f are needed", gain, needed)
    return gain >= needed


_PARTS = {"vision": _vision, "base": _base, "encoder": _encoder}


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
