"""The folder of a run: what lies where in it, and whether a run may begin there or go on."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from .checkpoints import latest_checkpoint, step_name
from .config import TrainingConfig
from .errors import TrainingError
from .files import read_object, replace_file, short_repr, writing

# Settings that may differ when a run goes on. The others would make it another run.
_MAY_CHANGE = frozenset(
    "output base base_config image_encoder data cache cache_folder workers steps batch_size accumulation "
    "gradient_checkpointing shard_base deterministic learning_rate save_every keep save_precision log_every "
    "tensorboard sample_every sample_prompts sample_steps guidance".split()
)

log = logging.getLogger(__name__)


class RunFolder:
    """Where a run's files lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoder = path / "encoder.safetensors"
        self.checkpoints = path / "checkpoints"
        self.settings = path / "config.json"
        self.log = path / "log.jsonl"
        self.tensorboard = path / "tensorboard"

    def samples(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.path / "samples" / f"{step_name(step)}.png"

    def checkpoint_to_resume(self, config: TrainingConfig, resume: bool) -> Path | None:
        """The last checkpoint, if asked to go on; None for a run that begins.

        Raises:
            TrainingError: the folder holds another run, or one that was not asked to go on.
        """
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None and not resume:
            raise TrainingError(
                f"{self.path}: already holds a run, up to {checkpoint.name}. Give --resume to go "
                "on with it, or choose another output folder."
            )
        if checkpoint is None and self.encoder.exists():
            raise TrainingError(
                f"{self.encoder}: is of an earlier run, of which no checkpoint is left to go on from. "
                "Choose another output folder (initial_encoder can name this file), or move it."
            )
        if checkpoint is not None:
            check_same_run(config, self.settings)
        return checkpoint

    def open(self, config: TrainingConfig, resumed_step: int) -> FigureLog:
        """Everything that will be written to is there, or the run does not begin."""
        with writing(self.checkpoints):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_settings(config, self.settings)
        return FigureLog(self.log, resumed_step)


def write_settings(config: TrainingConfig, path: Path) -> None:
    """The settings, replacing the file when complete."""
    replace_file(path, config.to_json().encode())


def check_same_run(config: TrainingConfig, path: Path) -> None:
    """Raises TrainingError where the settings are not those of the run that is to go on."""
    if not path.exists():
        log.warning("%s: is missing; whether the settings are the run's is not checked", path)
        return
    try:
        earlier = read_object(path)
    except TrainingError as error:
        raise TrainingError(
            f"{path.parent}: {error} The run's settings cannot be compared. If this run's are right, "
            f"move {path.name} elsewhere: it is written anew."
        ) from error
    changed = [
        f"{name} was {short_repr(earlier[name])}, is {short_repr(value)}"
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
        with writing(path):
            if path.exists() and not path.is_file():
                raise OSError("is no file")
            content = path.read_bytes() if path.exists() else b""
        # What an interrupted run wrote behind its last checkpoint is done again. A last line
        # without an end is of a run that was killed while it wrote.
        *lines, _ = content.split(b"\n")
        kept = [line for line in lines if not _is_later(line, resumed_step)]
        replace_file(path, b"".join(line + b"\n" for line in kept))

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Adds a line.

        Raises:
            TrainingError: the disk refuses.
        """
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")


def _is_later(line: bytes, step: int) -> bool:
    """Whether a line is of a later step; one that cannot be read is kept as it is."""
    try:
        return bool(json.loads(line)["step"] > step)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False
