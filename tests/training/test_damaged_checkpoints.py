"""Damaged checkpoints: one sentence each, and nothing lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import (
    AVERAGE,
    OPTIMISER,
    SOME_WEIGHT,
    WEIGHTS,
    change_run,
    change_tensors,
    cut_off,
    replace_by_folder,
    replace_by_pipe,
)
from safetensors.torch import load_file, save_file

from nested_core.training.checkpoints import latest_checkpoint, load_checkpoint
from nested_core.training.data.batches import Stripe
from nested_core.training.errors import TrainingError

DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    *(
        (name, damage, message)
        for name in (WEIGHTS, AVERAGE, OPTIMISER)
        for damage, message in (
            (cut_off, f"{name}: is cut off"),
            (lambda path: path.write_bytes(b""), f"{name}: the file is empty"),
            (lambda path: path.write_bytes(b"\x80\x02}q\x00." * 20), f"{name}: is a pickle file"),
            (lambda path: path.unlink(), f"{name}: no such file"),
            (replace_by_folder, f"{name}: is a folder"),
            (replace_by_pipe, f"{name}: is a folder or a device"),
        )
    ),
    (
        WEIGHTS,
        lambda path: change_tensors(path, lambda all: all[SOME_WEIGHT].fill_(float("nan"))),
        f"{WEIGHTS}: 1 tensors with NaN",
    ),
    (
        WEIGHTS,
        lambda path: change_tensors(path, lambda all: all.pop(SOME_WEIGHT)),
        f"{WEIGHTS}: is not of this run's encoder.*1 missing: 'encoder.resampler.latents'",
    ),
    (
        WEIGHTS,
        lambda path: change_tensors(path, lambda all: all.update(x=torch.zeros(1))),
        "1 unknown: 'x'",
    ),
    (
        WEIGHTS,
        lambda path: change_tensors(path, lambda all: all.update({SOME_WEIGHT: torch.zeros(7)})),
        r"1 different: .*float32 \[7\], expected torch.float32 \[1, 3, 16\]",
    ),
    (
        AVERAGE,
        lambda path: change_tensors(path, lambda all: all.update({"0": all["0"].half()})),
        "1 different: 0 is torch.float16",
    ),
    (
        AVERAGE,
        lambda path: change_tensors(path, lambda all: all.pop("3")),
        f"{AVERAGE}: is not of this run's encoder.*1 missing: '3'",
    ),
    (
        OPTIMISER,
        lambda path: change_tensors(path, lambda all: all.pop(f"{SOME_WEIGHT}.exp_avg")),
        f"{OPTIMISER}: holds .* of {SOME_WEIGHT}, expected .*'exp_avg'",
    ),
    (
        OPTIMISER,
        lambda path: change_tensors(
            path, lambda all: [all.pop(name) for name in list(all) if SOME_WEIGHT in name]
        ),
        f"{OPTIMISER}: holds {{}} of {SOME_WEIGHT}",
    ),
    (
        OPTIMISER,
        lambda path: change_tensors(
            path, lambda all: all.update({f"{SOME_WEIGHT}.exp_avg": torch.zeros(2)})
        ),
        r"'exp_avg': 'torch.float32 \[2\]'",
    ),
    (
        OPTIMISER,
        lambda path: change_tensors(path, lambda all: all.update({"x.step": torch.zeros(1)})),
        "the state of 'x'",
    ),
    (
        OPTIMISER,
        lambda path: save_file(load_file(path), path, metadata={"notes": "["}),
        "its notes are no JSON",
    ),
    (
        OPTIMISER,
        lambda path: save_file(load_file(path), path, metadata={"notes": '{"stateless": 3}'}),
        "its notes are .*expected numbers by parameter",
    ),
    ("generators-0.json", cut_off, "generators-0.json: cannot be read"),
    ("generators-0.json", lambda path: path.write_text("{}"), "holds no states of generators"),
    ("generators-0.json", lambda path: path.unlink(), "generators-0.json: is missing"),
    ("generators-0.json", lambda path: change_run(path, torch="00"), "holds no states"),
    ("generators-0.json", lambda path: change_run(path, python=[3, [1], None]), "holds no states"),
    ("generators-0.json", lambda path: change_run(path, numpy=[10**30]), "holds no states"),
    ("run.json", cut_off, "run.json: cannot be read"),
    ("run.json", lambda path: path.write_bytes(b"\xff\xfe{"), "run.json: cannot be read"),
    ("run.json", lambda path: path.write_text("[" * 100_000), "run.json: cannot be read"),
    ("run.json", lambda path: path.write_text("[]"), r"run.json: holds \[\], expected the JSON"),
    ("run.json", lambda path: path.write_text("{}"), "run.json: step is None"),
    ("run.json", lambda path: path.unlink(), "run.json: is missing"),
    ("run.json", replace_by_folder, "run.json: is no file"),
    ("run.json", replace_by_pipe, "run.json: is no file"),
    ("run.json", lambda path: change_run(path, step="2"), "run.json: step is '2', expected"),
    ("run.json", lambda path: change_run(path, step=True), "run.json: step is True"),
    (
        "run.json",
        lambda path: change_run(path, step=3),
        "step is 3, expected that of step-00000002",
    ),
    ("run.json", lambda path: change_run(path, step=10**300), "run.json: step is 1000"),
    ("run.json", lambda path: path.write_text('{"step": ' + "9" * 9999 + "}"), "cannot be read"),
    ("run.json", lambda path: change_run(path, step=float("nan")), "run.json: step is nan"),
    ("run.json", lambda path: change_run(path, version=9), "is of version 9, expected 1 to 2"),
    ("run.json", lambda path: change_run(path, version="new"), "version is 'new'"),
    ("run.json", lambda path: change_run(path, resume=None), "resume is None, expected a list"),
    ("run.json", lambda path: change_run(path, resume=[]), r"resume is \[\], expected a list"),
    ("run.json", lambda path: change_run(path, resume=[1, 2, 3]), "written by 3 processes"),
    ("run.json", lambda path: change_run(path, skipped=["a"]), r"skipped is \['a'\]"),
    ("run.json", lambda path: change_run(path, skipped={"a": 1}), "skipped is {'a': 1}"),
]


@pytest.mark.parametrize("name, damage, message", DAMAGES)
def test_damage_is_one_sentence(trainer, checkpoint, name, damage, message) -> None:
    damage(checkpoint / name)
    with pytest.raises(TrainingError, match=message) as caught:
        load_checkpoint(trainer.state, checkpoint)
    sentence = str(caught.value)
    assert sentence.startswith(str(checkpoint))
    assert "--resume then goes on from step-00000001" in sentence
    assert len(sentence) < 2000
    assert "\n" not in sentence


def test_bytes_by_chance_are_read_or_refused(trainer, checkpoint) -> None:
    """Whatever happens to a file, nothing but our own error comes of it."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    draws, refused = random.Random(0), 0
    for _ in range(60):
        file = draws.choice(files)
        content = file.read_bytes()
        changed = bytearray(content[: draws.choice([len(content), draws.randrange(len(content))])])
        for _ in range(draws.randrange(4)):
            place = draws.randrange(min(len(changed), draws.choice([40, 10**9])) or 1)
            changed[place : place + 1] = draws.choice([b"", b"\xff", b"[", b"9" * 30, b"\x00"])
        file.write_bytes(changed)
        try:
            load_checkpoint(trainer.state, checkpoint)
        except TrainingError:
            refused += 1
        file.write_bytes(content)
    assert refused > 30
    load_checkpoint(trainer.state, checkpoint)


def test_the_command_says_it_and_ends(go_on, checkpoint, caplog) -> None:
    cut_off(checkpoint / WEIGHTS)
    assert go_on() == 2
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"{checkpoint}: {WEIGHTS}: is cut off" in error.getMessage()
    shutil.move(checkpoint, checkpoint.with_name("set-aside"))  # as it says
    assert go_on() == 0
    assert latest_checkpoint(checkpoint.parent).name == "step-00000003"


def test_without_an_earlier_checkpoint_the_encoder_is_the_remedy(trainer, checkpoint) -> None:
    shutil.rmtree(checkpoint.with_name("step-00000001"))
    cut_off(checkpoint / WEIGHTS)
    with pytest.raises(TrainingError, match=r"no earlier checkpoint.*\(initial_encoder\)"):
        load_checkpoint(trainer.state, checkpoint)


@pytest.mark.parametrize(
    "place", [3, [], {}, {"turn": 1}, *({"slot": each} for each in (-1, "1", 10**300, 1.5, True))]
)
def test_a_place_in_the_data_that_is_none_is_named(trainer, place) -> None:
    with pytest.raises(TrainingError, match="The checkpoint's place in the data: slot is"):
        next(trainer.data.batches(place, Stripe()))


def test_a_missing_place_is_said(go_on, checkpoint, caplog) -> None:
    change_run(checkpoint / "run.json", resume=[None])
    assert go_on() == 0
    assert "step-00000002 holds no place in the data, which begins anew" in caplog.text
