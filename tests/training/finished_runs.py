"""What a finished run's checkpoints are made of, and ways to damage them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, AVERAGE, OPTIMISER = (f"{n}.safetensors" for n in ("model", "average-0", "optimizer"))
SOME_WEIGHT = "encoder.resampler.latents"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: each.clone() for name, each in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def change_run(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
