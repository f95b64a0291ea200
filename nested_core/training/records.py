"""What a run writes besides checkpoints: its settings, and a line of figures now and then."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from .config import TrainingConfig
from .errors import TrainingError

# Settings that may differ when a run goes on. The others would make it another run.
_MAY_CHANGE = frozenset(
    "output base base_config image_encoder data workers steps batch_size accumulation "
    "gradient_checkpointing deterministic learning_rate save_every keep save_precision log_every "
    "tensorboard sample_every sample_prompts sample_steps guidance".split()
)


def write_settings(config: TrainingConfig, path: Path) -> None:
    """The settings, replacing the file when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".unfinished")
    temporary.write_text(config.to_json(), encoding="utf-8")
    os.replace(temporary, path)


def check_same_run(config: TrainingConfig, path: Path) -> None:
    """Raises TrainingError where the settings are not those of the run that is to go on."""
    if not path.exists():
        return
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} was {earlier[name]!r}, is {value!r}"
        for name, value in dataclasses.asdict(config).items()
        if name in earlier and earlier[name] != value and name not in _MAY_CHANGE
    ]
    if changed:
        raise TrainingError(
            f"{path}: the run that is to go on had other settings: {'; '.join(changed)}. Set them "
            "back, or begin a new run in another folder from this one's encoder (initial_encoder)."
        )


class FigureLog:
    """`log.jsonl`: one JSON object a line, the step first."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # What an interrupted run wrote behind its last checkpoint is done again.
        kept = [line for line in lines if _step(line) <= resumed_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Adds a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # the last line of a run that was killed while it wrote
