"""Damaged and hostile things in a run's folder: one sentence each, no code of theirs, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_models import checkpoint_contents, tiny_settings, write_examples

from nested_core.training.__main__ import main
from nested_core.training.checkpoints import latest_checkpoint, load_checkpoint
from nested_core.training.config import TrainingConfig
from nested_core.training.data import open_data
from nested_core.training.data.batches import Stripe
from nested_core.training.diffusers_model import load_base_model
from nested_core.training.errors import TrainingError
from nested_core.training.run_folder import FigureLog, check_same_run
from nested_core.training.trainer import Trainer

WEIGHTS, AVERAGE, OPTIMISER = (f"{n}.safetensors" for n in ("model", "average-0", "optimizer"))
SOME_WEIGHT = "encoder.resampler.latents"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base_folders, image_encoder_folder) -> dict[str, Any]:
    """The settings of a run of two steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_examples(folder / "data")
    run = tiny_settings(folder / "run", base_folders["sd15"], image_encoder_folder, data)
    changed = {**run, "steps": 2, "save_every": 1}
    (folder / "run.json").write_text(json.dumps(changed))
    assert main(["--config", str(folder / "run.json")]) == 0
    return changed


@pytest.fixture(scope="module")
def trainer(finished) -> Trainer:
    """A run that could go on from such a checkpoint."""
    config = TrainingConfig(**finished)
    base_model = load_base_model(config.base, config.image_encoder)
    data = open_data(config, base_model.image_encoder.image_size)
    return Trainer(config, base_model, data, Accelerator(cpu=True))


@pytest.fixture
def output(finished, tmp_path) -> Path:
    """A copy of the finished run's folder."""
    return shutil.copytree(finished["output"], tmp_path / "run")


@pytest.fixture
def checkpoint(output) -> Path:
    return output / "checkpoints" / "step-00000002"


@pytest.fixture
def go_on(finished, output, tmp_path) -> Callable[..., int]:
    """The command's status where it goes on with the copy for a step."""

    def run(*arguments: str) -> int:
        file = tmp_path / "settings.json"
        file.write_text(json.dumps({**finished, "output": str(output), "steps": 3}))
        return main(["--config", str(file), "--resume", *arguments])

    return run


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


# Pickle files


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


# The other files of the folder


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
