"""A run's folder besides its checkpoints: settings, log, encoder; damaged, missing, written twice."""

from __future__ import annotations

import json
import random
import shutil
import time

import pytest
import torch
from finished_runs import (
    AVERAGE,
    OPTIMISER,
    WEIGHTS,
)
from tiny_models import checkpoint_contents

from nested_core.training.__main__ import main
from nested_core.training.config import TrainingConfig
from nested_core.training.errors import TrainingError
from nested_core.training.run_folder import FigureLog, check_same_run


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "config.json: cannot be read"),
        (b"[1]", r"config.json: holds \[1\]"),
        (b"\xff", "config.json: cannot be read"),
        (b"[" * 100_000, "config.json: cannot be read"),
        (b'{"seed": "0"}', "seed was '0', is 0"),
        (b'{"seed": 1' + b"0" * 500 + b"}", r"seed was 1000+\.\.\., is 0"),
        (b'{"noun": "' + b"x" * 9000 + b'"}', "noun was 'xxx"),
    ],
)
def test_damaged_settings_are_named(finished, tmp_path, content, message) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        check_same_run(TrainingConfig(**finished), tmp_path / "config.json")
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


def test_missing_settings_are_said(finished, tmp_path, caplog) -> None:
    check_same_run(TrainingConfig(**finished), tmp_path / "config.json")
    assert (
        "config.json: is missing; whether the settings are the run's is not checked" in caplog.text
    )


def test_lines_that_cannot_be_read_stay(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    kept = [b'{"step": 1}', b"[1]", b"\xff", b"[" * 9999, b'{"step": null}', b'{"step": 2}']
    path.write_bytes(b"\n".join([*kept, b'{"step": 3}', b'{"step": 1, "lo']))
    FigureLog(path, resumed_step=2)
    assert path.read_bytes() == b"\n".join([*kept, b""])


def test_an_encoder_without_checkpoints_is_not_overwritten(go_on, output, caplog) -> None:
    before = (output / "encoder.safetensors").read_bytes()
    shutil.rmtree(output / "checkpoints")
    assert go_on() == 2
    assert "of an earlier run, of which no checkpoint is left" in caplog.text
    assert (output / "encoder.safetensors").read_bytes() == before


def test_two_runs_write_the_same_bytes(finished, output, tmp_path) -> None:
    again = tmp_path / "again"
    file = tmp_path / "again.json"
    file.write_text(json.dumps({**finished, "output": str(again)}))
    random.seed(time.time())
    torch.manual_seed(1)
    assert main(["--config", str(file)]) == 0
    one, other = (
        checkpoint_contents(folder / "checkpoints" / "step-00000002") for folder in (output, again)
    )
    assert sorted(one) == [AVERAGE, "generators-0.json", WEIGHTS, OPTIMISER, "run.json"]
    assert [name for name in one if one[name] != other[name]] == []
