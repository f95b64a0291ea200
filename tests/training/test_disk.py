"""A disk that is full or refuses: one sentence, an exit status, and nothing lost."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from nested_core.training import trainer
from nested_core.training.__main__ import main
from nested_core.training.checkpoints import latest_checkpoint
from nested_core.training.config import TrainingConfig
from nested_core.training.data.batches import read_batches
from nested_core.training.errors import TrainingError
from nested_core.training.files import replace_file
from nested_core.training.run_folder import FigureLog, write_settings

resource = pytest.importorskip("resource")  # not on Windows


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def on_a_full_disk(function: Callable[..., Any], most_bytes: int, call: int = 1) -> Any:
    """`function`, whose calls from the `call`-th on meet a full disk."""
    calls = []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) < call:
            return function(*arguments, **options)
        with full_disk(most_bytes):
            return function(*arguments, **options)

    return wrapper


@pytest.fixture
def train(settings, tmp_path, caplog) -> Callable[..., tuple[int, str]]:
    """Runs the command; its status and the sentence that it ended with."""

    def run(*arguments: str, **changes: Any) -> tuple[int, str]:
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(settings(**changes)))
        caplog.clear()
        status = main(["--config", str(file), *arguments])
        said = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        assert len(said) == (status == 2)
        return status, said[0] if said else ""

    return run


@pytest.fixture
def output(settings) -> Path:
    return Path(settings()["output"])


def test_a_checkpoint_that_does_not_fit_costs_no_other(train, output, monkeypatch) -> None:
    """And the readers, which are deaf to SIGTERM, do not keep the process from ending."""
    save = on_a_full_disk(trainer.save_checkpoint, 2_000, call=3)
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    status, said = train(save_every=1, workers=1)
    assert status == 2
    assert "model.safetensors: cannot be written (" in said
    assert "File too large" in said
    assert "Free space on that disk" in said
    assert not multiprocessing.active_children()
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002"]
    monkeypatch.undo()
    assert train("--resume", steps=3) == (0, "")


@pytest.mark.parametrize(
    "where, most_bytes, name",
    [
        ("save_checkpoint", 2_000, "model.safetensors"),
        ("save_encoder", 2_000, "encoder.safetensors"),
    ],
)
def test_the_last_save_on_a_full_disk(train, output, monkeypatch, where, most_bytes, name) -> None:
    monkeypatch.setattr(trainer, where, on_a_full_disk(getattr(trainer, where), most_bytes))
    status, said = train(steps=1)
    assert status == 2
    assert f"{name}: cannot be written" in said
    left = [path.name for path in output.rglob("*") if path.name.endswith((".unfinished", ".tmp"))]
    assert left == []


def test_small_files_on_a_full_disk_stay_as_they_were(tmp_path) -> None:
    config = TrainingConfig(output=str(tmp_path))
    settings_file, log_file = tmp_path / "config.json", tmp_path / "log.jsonl"
    write_settings(config, settings_file)
    log = FigureLog(log_file, 0)
    log.write(1, {"loss": 1.0})
    before = settings_file.read_bytes(), log_file.read_bytes()
    with full_disk(8):
        for write in (
            lambda: write_settings(config, settings_file),
            lambda: FigureLog(log_file, 1),
            lambda: replace_file(tmp_path / "new", b"123456789"),
        ):
            with pytest.raises(TrainingError, match=r"cannot be written \(File too large\)"):
                write()
        with pytest.raises(TrainingError, match=r"log\.jsonl: cannot be written"):
            log.write(2, {"loss": 1.0})
    assert (settings_file.read_bytes(), log_file.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "log.jsonl"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "run/checkpoints: cannot be written (Not a directory)"),
        ("checkpoints", "run/checkpoints: cannot be written (File exists)"),
        ("config.json/x", "config.json: cannot be written (Is a directory)"),
        ("log.jsonl/x", "log.jsonl: cannot be written (is no file)"),
        ("tensorboard", "run/tensorboard: cannot be written ("),
        ("samples", "run/samples/step-00000001.png: cannot be written (File exists)"),
        ("encoder.safetensors/x", "encoder.safetensors: is of an earlier run"),
    ],
)
def test_what_stands_in_the_way_is_named(train, output, name, message) -> None:
    """As a folder that may not be written to does, for whoever is not root."""
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    options = {"sample_every": 1, "sample_steps": 1} if name == "samples" else {}
    status, said = train(steps=1, tensorboard=True, **options)
    assert status == 2
    assert message in said


def test_tensorboard_on_a_full_disk(train, monkeypatch) -> None:
    """It writes in a thread of its own, whose traceback is not shown."""
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    monkeypatch.setattr(record_writer.RecordWriter, "flush", refuse)
    status, said = train(steps=9, tensorboard=True)
    assert status == 2
    assert "run/tensorboard: cannot be written (No space left on device)" in said
    assert shown == []


class Stuck(Dataset[Any]):
    """Its reader waits for ever, as one of a disk that no longer answers."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(3600)


def test_a_reader_that_is_stuck_ends_with_the_run(monkeypatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    batches = read_batches(Stuck(), workers=2, sampler=[[0]] * 9)

    def interrupt(_: int, frame: types.FrameType | None) -> None:
        # While it waits, not while readers are started or ended. Again where a destructor swallows it.
        names = [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]
        if "_try_get_data" in names:
            raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    batches.close()
    assert not multiprocessing.active_children()


class Killed(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), 9)


def test_a_reader_that_was_killed_is_one_sentence() -> None:
    with pytest.raises(TrainingError, match="A process that reads data has ended") as said:
        next(read_batches(Killed(), workers=1, sampler=[[0]]))
    assert "Traceback" not in str(said.value)
    assert not multiprocessing.active_children()


def test_a_reader_that_fails_is_one_sentence(train, data_folder) -> None:
    for path in data_folder.glob("*.png"):
        path.write_bytes(b"no picture")
    status, said = train(workers=2, text_statistics=0)
    assert status == 2
    assert "100 examples in a row cannot be read" in said
    assert "Traceback" not in said
    assert not multiprocessing.active_children()


def test_a_diverged_run_keeps_its_checkpoints(train, output) -> None:
    assert train(steps=1, log_every=100) == (0, "")
    status, said = train(
        "--resume", steps=3, log_every=100, save_every=1, learning_rate=1e30, keep=1
    )
    assert status == 2
    assert "the training has diverged" in said
    assert latest_checkpoint(output / "checkpoints").name <= "step-00000002"
