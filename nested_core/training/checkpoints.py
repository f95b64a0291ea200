"""Checkpoints of a run: written under another name, forced to the disk, then renamed.

Whatever has the name of a checkpoint is whole, at whatever moment the run is killed.
"""

# accelerate is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

from accelerate.utils import gather_object

from ..checkpoint.weights import listing
from ..errors import NestedAttentionError
from .errors import TrainingError
from .files import UNFINISHED, read_object, replace_file, short_repr, whole_number, writing
from .processes import run_on_all_processes, run_on_main_process
from .training_state import TrainingState

_NAME = re.compile(r"step-([0-9]{8})")
_RUN = "run.json"
_VERSION = 2  # 1 had pickle files, and no version in run.json

log = logging.getLogger(__name__)


def save_checkpoint(
    state: TrainingState,
    folder: Path,
    step: int,
    resume: Any,
    skipped: dict[str, str],
    keep: int,
) -> None:
    """Everything that the next step depends on. All processes take part.

    Args:
        resume: where this process's data goes on; each process's own is kept.
        skipped: unreadable files that this process met.

    Raises:
        TrainingError: the disk refuses; earlier checkpoints are as they were.
    """
    accelerator = state.accelerator
    is_main = accelerator.is_main_process
    final = folder / step_name(step)
    unfinished = final.with_name(final.name + UNFINISHED)
    positions: list[Any] = gather_object([resume])
    all_skipped: list[dict[str, str]] = gather_object([skipped])
    run = {
        "version": _VERSION,
        "step": step,
        "resume": positions,
        "skipped": {name: reason for own in all_skipped for name, reason in own.items()},
        "scaler": state.scaler_state(),
    }
    weights, optimiser = state.gather()
    try:
        run_on_main_process(accelerator, lambda: _make_folder(unfinished))
        run_on_all_processes(accelerator, lambda: state.write(unfinished, weights, optimiser))
        run_on_main_process(accelerator, lambda: _finish(unfinished, final, run))
    except TrainingError:
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)  # the space may be needed at once
        raise
    if is_main:
        _remove_old(folder, keep)
    accelerator.wait_for_everyone()


def step_name(step: int) -> str:
    """`step-00000012`, which sorts as the steps do."""
    return f"step-{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step; None where there is none."""
    return max(_finished(folder), default=None)


def load_checkpoint(state: TrainingState, checkpoint: Path) -> tuple[int, Any, dict[str, str]]:
    """Puts everything back; the step, this process's place in the data, and what was skipped.

    Raises:
        TrainingError: a file is missing, damaged, of another encoder or of a later version; or it
            was written by another number of processes, whose places in the data cannot be divided
            anew. It says which checkpoint comes before.
    """
    loaded: list[tuple[int, Any, dict[str, str]]] = []

    def read() -> None:
        try:
            run = _read_run(checkpoint)
            position = _data_position(state, run)
            state.read(checkpoint, run)
            if state.accelerator.is_main_process:
                _report_left_out(checkpoint, state.expected_files(run))
        except NestedAttentionError as error:
            raise TrainingError(f"{checkpoint}: {error} {_remedy(checkpoint)}") from error
        is_main = state.accelerator.is_main_process
        loaded.append((run["step"], position, run["skipped"] if is_main else {}))

    run_on_all_processes(state.accelerator, read)
    return loaded[0]


def _read_run(checkpoint: Path) -> dict[str, Any]:
    """`run.json` with every entry of the type that it must have."""
    run = {"version": 1, "skipped": {}, **read_object(checkpoint / _RUN)}
    version = whole_number(f"{_RUN}: version", run["version"])
    if not 1 <= version <= _VERSION:
        raise TrainingError(
            f"{_RUN}: is of version {version}, expected 1 to {_VERSION}. It was written by another "
            "version of this trainer: update it."
        )
    step = whole_number(f"{_RUN}: step", run.get("step"))
    if checkpoint.name != step_name(step):
        raise TrainingError(f"{_RUN}: step is {step}, expected that of {checkpoint.name}.")
    resume, skipped = run.get("resume"), run["skipped"]
    if not isinstance(resume, list) or not resume:
        raise TrainingError(f"{_RUN}: resume is {short_repr(resume)}, expected a list of places.")
    names = cast("dict[str, Any]", skipped)
    if not isinstance(skipped, dict) or not all(isinstance(each, str) for each in names.values()):
        raise TrainingError(
            f"{_RUN}: skipped is {short_repr(skipped)}, expected names and reasons."
        )
    return run


def _data_position(state: TrainingState, run: dict[str, Any]) -> Any:
    """Where this process's data goes on."""
    positions: list[Any] = run["resume"]
    accelerator = state.accelerator
    if len(positions) == accelerator.num_processes:
        return positions[accelerator.process_index]
    if all(position == positions[0] for position in positions):
        return positions[0]
    raise TrainingError(
        f"Was written by {len(positions)} processes, each with a place of its own in the shards; "
        f"this run has {accelerator.num_processes}. Resume with {len(positions)}."
    )


def _remedy(checkpoint: Path) -> str:
    earlier = [path for path in _finished(checkpoint.parent) if path < checkpoint]
    if earlier:
        return (
            f"If it cannot be mended, move {checkpoint.name} elsewhere: --resume then goes on from "
            f"{max(earlier).name}."
        )
    return (
        "There is no earlier checkpoint: if it cannot be mended, begin a new run in another folder, "
        "from this one's encoder file (initial_encoder)."
    )


def _report_left_out(checkpoint: Path, expected: set[str]) -> None:
    names = {path.name for path in checkpoint.iterdir()} - expected - {_RUN}
    if names:
        log.warning(
            "%s: left out, unopened, %s. They are none of this trainer's files; pickle files could "
            "run code.",
            checkpoint,
            listing("files", [short_repr(name) for name in sorted(names)]),
        )


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _make_folder(unfinished: Path) -> None:
    """A new folder; what killed runs left of theirs goes."""
    for path in unfinished.parent.glob(f"step-*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)
    with writing(unfinished):
        unfinished.mkdir(parents=True)


def _finish(unfinished: Path, final: Path, run: dict[str, Any]) -> None:
    replace_file(unfinished / _RUN, json.dumps(run, indent=1).encode())
    with writing(final):
        for path in [*unfinished.rglob("*"), unfinished]:
            _flush(path)
        if final.exists():
            _remove(final)
        os.replace(unfinished, final)
        _flush(final.parent)


def _remove_old(folder: Path, keep: int) -> None:
    for path in _finished(folder)[: -max(keep, 1)]:
        try:
            _remove(path)
        except OSError as error:  # the new checkpoint is whole, whatever becomes of the old one
            log.warning("%s: cannot be removed (%s)", path, error)


def _remove(path: Path) -> None:
    # Renamed first: half a checkpoint must not have a checkpoint's name.
    doomed = path.with_name(f"{path.name}.old{UNFINISHED}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush(path: Path) -> None:
    """Forces a file or a folder's list of names to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
