"""A run that stops and goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import checkpoint_contents

from nested_core.training.__main__ import main
from nested_core.training.checkpoints import latest_checkpoint

ROOT = Path(__file__).parents[2]


def in_this_process(settings: dict, *arguments: str) -> Path:
    """A whole run through the command's entry; its folder."""
    assert main(["--config", str(write_settings(settings)), *arguments]) == 0
    return Path(settings["output"])


COMMAND = ("-m", "nested_core.training")


def in_processes_of_their_own(
    settings: dict, *launcher: str, command: tuple[str, ...] = COMMAND
) -> subprocess.Popen:
    """`python -m nested_core.training`, on as many threads as this process uses."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    arguments = ("--config", str(write_settings(settings)))
    whole = [sys.executable, *launcher, *command, *arguments]
    return subprocess.Popen(whole, env=environment, start_new_session=True)


def write_settings(settings: dict) -> Path:
    file = Path(settings["output"] + ".json")
    file.write_text(json.dumps(settings))
    return file


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_same_end(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert tensors(one / "encoder.safetensors") == tensors(other / "encoder.safetensors")
    ends = [latest_checkpoint(folder / "checkpoints") for folder in (one, other)]
    assert None not in ends
    contents, expected = (checkpoint_contents(end) for end in ends)
    assert contents.keys() == expected.keys()
    assert "optimizer.safetensors" in contents
    assert [name for name in contents if contents[name] != expected[name]] == []


def tensors(file: Path) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in load_file(file).items()}


LONG = {"steps": 6, "accumulation": 2, "workers": 1, "drop_image": 0.3, "save_every": 100}


@pytest.fixture
def whole_run(tmp_path, settings) -> Path:
    """Six steps with dropout, accumulation and workers, uninterrupted."""
    return in_this_process(settings(output=str(tmp_path / "whole"), **LONG))


@pytest.mark.parametrize("optimiser", ["AdamW", "SGD"])
def test_going_on_from_a_checkpoint(tmp_path, settings, optimiser) -> None:
    whole = in_this_process(
        settings(output=str(tmp_path / "whole"), optimiser=optimiser, **{**LONG, "keep": 9})
    )
    parts = settings(output=str(tmp_path / "parts"), optimiser=optimiser, **LONG)
    in_this_process({**parts, "steps": 2})
    in_this_process({**parts, "steps": 3}, "--resume")
    assert_same_end(in_this_process(parts, "--resume"), whole)


def test_sigterm_loses_nothing(tmp_path, settings, whole_run) -> None:
    stopped = settings(output=str(tmp_path / "stopped"), **LONG)
    log = Path(stopped["output"], "log.jsonl")
    process = in_processes_of_their_own(stopped)
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 1):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: the data's readers get it, too
    assert process.wait(60) == 128 + signal.SIGTERM
    assert 1 <= len(losses(log.parent)) < LONG["steps"]
    assert_same_end(in_this_process(stopped, "--resume"), whole_run)


def test_two_processes_follow_the_trajectory_of_one(tmp_path, settings) -> None:
    steps = {"steps": 3, "save_every": 100}
    alone = in_this_process(settings(output=str(tmp_path / "one"), batch_size=4, **steps))
    halves = settings(output=str(tmp_path / "two"), batch_size=2, **steps)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert in_processes_of_their_own(halves, *launcher).wait(180) == 0
    together = Path(halves["output"])
    # Gradients are summed in another order; AdamW's first steps enlarge the last bits.
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    one, two = (load_file(folder / "encoder.safetensors") for folder in (alone, together))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3
    end = latest_checkpoint(together / "checkpoints")
    assert end is not None
    assert json.loads((end / "run.json").read_text())["resume"] == [{"slot": 12}, {"slot": 12}]


def test_what_an_interrupted_writer_left_is_no_checkpoint(tmp_path) -> None:
    for name in ("step-00000002", "step-00000010", "step-00000030.unfinished", "step-x"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000010"
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_only_the_last_checkpoints_are_kept(settings) -> None:
    folder = in_this_process(settings(steps=4, save_every=1, keep=2))
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_a_run_is_not_overwritten(settings, caplog) -> None:
    folder = in_this_process(settings(steps=1))
    again = ["--config", f"{folder}.json"]
    assert main(again) == 2
    assert "already holds a run, up to step-00000001. Give --resume" in caplog.text


def test_another_run_is_not_gone_on_with(settings, caplog) -> None:
    folder = in_this_process(settings(steps=1))
    assert main(["--config", f"{folder}.json", "--resume", "--seed", "3"]) == 2
    assert "seed was 0, is 3" in caplog.text


def test_a_loss_that_is_no_number_ends_the_run(settings, caplog) -> None:
    file = write_settings(settings(steps=9, learning_rate=1e30, max_grad_norm=0.0))
    assert main(["--config", str(file)]) == 2
    assert "the training has diverged" in caplog.text
