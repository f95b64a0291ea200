"""Pickle files in a checkpoint, which could run code: left out or refused; those of earlier versions."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import (
    AVERAGE,
    OPTIMISER,
    WEIGHTS,
    cut_off,
)

from nested_core.training.__main__ import main
from nested_core.training.checkpoints import load_checkpoint
from nested_core.training.errors import TrainingError


class Evil:
    """Leaves a mark where it is unpickled with code allowed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "mark"


def write_evil(path: Path, mark: Path, zipped: bool = False) -> None:
    if zipped:
        with path.open("wb") as file:
            torch.save({"state": Evil(mark)}, file)
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))


def test_the_mark_is_left_by_whoever_runs_the_code(tmp_path, mark) -> None:
    write_evil(tmp_path / "x", mark, zipped=True)
    torch.load(tmp_path / "x", weights_only=False)
    assert mark.exists()


FOREIGN = (
    "optimizer.bin optimizer_1.bin scheduler.bin random_states_0.pkl scaler.pt sampler.bin "
    "custom_checkpoint_0.pkl pytorch_model.bin dl_state_dict.bin .metadata model.safetensors.index.json"
).split()


@pytest.mark.parametrize("zipped", [False, True])
def test_pickle_files_are_left_out_and_named(go_on, checkpoint, mark, caplog, zipped) -> None:
    for name in FOREIGN:
        write_evil(checkpoint / name, mark, zipped)
    assert go_on() == 0
    assert not mark.exists()
    (said,) = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert f"{checkpoint}: left out, unopened, {len(FOREIGN)} files: '.metadata', 'custom" in said


@pytest.mark.parametrize("name", [WEIGHTS, AVERAGE, OPTIMISER, "generators-0.json", "run.json"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_in_a_files_place_is_refused(trainer, checkpoint, mark, name, zipped) -> None:
    write_evil(checkpoint / name, mark, zipped)
    with pytest.raises(TrainingError, match=name):
        load_checkpoint(trainer.state, checkpoint)
    assert not mark.exists()


@pytest.fixture
def old_checkpoint(trainer, checkpoint) -> Path:
    """As earlier versions wrote it, by accelerate."""
    load_checkpoint(trainer.state, checkpoint)
    for name in (WEIGHTS, OPTIMISER, "generators-0.json"):
        (checkpoint / name).unlink()
    trainer.accelerator.save_state(str(checkpoint), safe_serialization=True)
    run = json.loads((checkpoint / "run.json").read_text())
    kept = {name: run[name] for name in ("step", "resume", "skipped")}
    (checkpoint / "run.json").write_text(json.dumps(kept))
    assert (checkpoint / "optimizer.bin").exists()
    return checkpoint


def test_an_earlier_versions_checkpoint_goes_on_bit_for_bit(
    go_on, finished, old_checkpoint, caplog, tmp_path
) -> None:
    assert go_on() == 0
    assert "left out, unopened, 1 files: 'random_states_0.pkl'" in caplog.text
    file = tmp_path / "whole.json"
    whole = tmp_path / "whole"
    file.write_text(json.dumps({**finished, "output": str(whole), "steps": 3}))
    assert main(["--config", str(file)]) == 0
    for name in (WEIGHTS, AVERAGE, OPTIMISER):
        ours, theirs = (
            (folder / "step-00000003" / name).read_bytes()
            for folder in (old_checkpoint.parent, whole / "checkpoints")
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "write",
    [
        lambda path, mark: write_evil(path, mark),
        lambda path, mark: write_evil(path, mark, zipped=True),
        lambda path, mark: cut_off(path),
        lambda path, mark: path.write_bytes(b""),
        lambda path, mark: torch.save([1, 2], path),
        lambda path, mark: torch.save({"state": {"a": 3}, "param_groups": []}, path),
    ],
)
def test_an_earlier_versions_pickle_runs_no_code(trainer, old_checkpoint, mark, write) -> None:
    write(old_checkpoint / "optimizer.bin", mark)
    with pytest.raises(TrainingError, match=r"optimizer.bin: (cannot be read safely|holds)"):
        load_checkpoint(trainer.state, old_checkpoint)
    assert not mark.exists()


def test_a_torch_that_cannot_be_trusted_opens_no_pickle(
    trainer, old_checkpoint, monkeypatch
) -> None:
    monkeypatch.setattr("nested_core.training.optimiser._SAFE_TORCH", (99, 0))
    with pytest.raises(TrainingError, match=r"expected torch 2\.6 or newer"):
        load_checkpoint(trainer.state, old_checkpoint)
