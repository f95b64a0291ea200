"""Checkpoints of a run: written under another name, forced to the disk, then renamed.

Whatever has the name of a checkpoint is whole, at whatever moment the run is killed.
"""

# accelerate is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from .ema import MovingAverage
from .errors import TrainingError

_NAME = re.compile(r"step-(\d{8})")
_UNFINISHED = ".unfinished"
_STATE = "run.json"


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    average: MovingAverage,
    step: int,
    resume: Any,
    skipped: dict[str, str],
    keep: int,
) -> None:
    """Everything that the next step depends on. All processes take part.

    Args:
        resume: where this process's data goes on; each process's own is kept.
        skipped: unreadable files that this process met.
    """
    final = folder / f"step-{step:08d}"
    unfinished = final.with_name(final.name + _UNFINISHED)
    positions: list[Any] = gather_object([resume])
    all_skipped: list[dict[str, str]] = gather_object([skipped])
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished), safe_serialization=True)
    if average.averages and (accelerator.is_main_process or _is_sharded(accelerator)):
        save_file(average.tensors(), unfinished / _average_name(accelerator))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        merged = {name: reason for each in all_skipped for name, reason in each.items()}
        state = {"step": step, "resume": positions, "skipped": merged}
        (unfinished / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        _flush_tree(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        _flush(folder)
        _forget_old(folder, keep)
    accelerator.wait_for_everyone()


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step; None where there is none."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return max(found, default=None)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: Path, average: MovingAverage
) -> tuple[int, Any, dict[str, str]]:
    """Puts everything back; the step, this process's place in the data, and what was skipped.

    Raises:
        TrainingError: it was written by another number of processes, whose places in the data
            cannot be divided anew.
    """
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    positions: list[Any] = state["resume"]
    if len(positions) == accelerator.num_processes:
        resume = positions[accelerator.process_index]
    elif all(position == positions[0] for position in positions):
        resume = positions[0]
    else:
        raise TrainingError(
            f"{checkpoint}: was written by {len(positions)} processes, each with a place of its own "
            f"in the shards; this run has {accelerator.num_processes}. Resume with {len(positions)}."
        )
    accelerator.load_state(str(checkpoint))
    if average.averages:
        average.load(load_file(checkpoint / _average_name(accelerator)))
    skipped: dict[str, str] = state["skipped"] if accelerator.is_main_process else {}
    return state["step"], resume, skipped


def _average_name(accelerator: Accelerator) -> str:
    shard = accelerator.process_index if _is_sharded(accelerator) else 0
    return f"average-{shard}.safetensors"


def _is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def _forget_old(folder: Path, keep: int) -> None:
    finished = sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    for path in finished[: -max(keep, 1)]:
        # Renamed first: half a checkpoint must not have a checkpoint's name.
        doomed = path.with_name(path.name + _UNFINISHED)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    """Forces a file or a folder's list of names to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
