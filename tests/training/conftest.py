"""Tiny random base models in diffusers' layout, tiny data, and runs of a few steps on them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from nested_core.training.__main__ import main
from nested_core.training.config import TrainingConfig

_NEEDED = ("accelerate", "diffusers", "webdataset")  # `dev.py` installs them

if all(importlib.util.find_spec(name) for name in _NEEDED):
    sys.path.append(str(Path(__file__).parent))
    from tiny_models import (
        save_tiny_base,
        save_tiny_image_encoder,
        tiny_settings,
        write_examples,
    )
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    host = os.environ.get("NESTED_ATTENTION_HOST") or os.environ.get("COMFYUI_PATH")
    if not host:
        pytest.exit("tests/training need a ComfyUI: run `python dev.py test`.", returncode=4)
    return Path(host, "comfy", "sd1_tokenizer")


@pytest.fixture(scope="session")
def base_folders(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> dict[str, Path]:
    """A tiny pipeline of each family, saved as diffusers saves them."""
    folders = {family: tmp_path_factory.mktemp(family) for family in ("sd15", "sdxl")}
    for family, folder in folders.items():
        save_tiny_base(family, folder, tokenizer_folder)
    return folders


@pytest.fixture(scope="session")
def image_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    save_tiny_image_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def flow_base(
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Callable[[str], Path], None, None]:
    """The folder of a family's tiny transformer, saved when it is first asked for."""
    from tiny_flow_models import tiny_flow_pipeline
    from tiny_text_encoders import tokenizers_read_once

    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny_flow_pipeline(family).save_pretrained(folders[family])
        return folders[family]

    with tokenizers_read_once():
        yield of


@pytest.fixture
def run_settings(
    tmp_path: Path, image_encoder_folder: Path, flow_base: Callable[[str], Path]
) -> Callable[..., dict[str, Any]]:
    """Settings of a run of two steps on a tiny transformer."""

    def make(family: str, **changes: Any) -> dict[str, Any]:
        data = tmp_path / "data"
        if not data.exists():
            write_examples(data)
        folders = tmp_path / "run", flow_base(family), image_encoder_folder, data
        return {**tiny_settings(*folders), "steps": 2, "weight_decay": 0.0, **changes}

    return make


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Six pictures; the last has references of its own and a mask."""
    return write_examples(tmp_path / "data")


MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture
def settings(
    tmp_path: Path,
    base_folders: dict[str, Path],
    image_encoder_folder: Path,
    data_folder: Path,
) -> Callable[..., dict[str, Any]]:
    """Settings of a run on the tiny SD1.5, as a dictionary; keyword arguments replace them."""

    def make(family: str = "sd15", **changes: Any) -> dict[str, Any]:
        folders = (base_folders[family], image_encoder_folder, data_folder)
        return {**tiny_settings(tmp_path / "run", *folders), **changes}

    return make


@pytest.fixture
def make_config(settings: Callable[..., dict[str, Any]]) -> MakeConfig:
    """The same as a `TrainingConfig`."""
    return lambda *args, **changes: TrainingConfig(**settings(*args, **changes))


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
def trainer(finished: dict[str, Any]) -> Any:
    """A run that could go on from such a checkpoint."""
    from accelerate import Accelerator

    from nested_core.training.data import open_data
    from nested_core.training.diffusers_model import load_base_model
    from nested_core.training.trainer import Trainer

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
