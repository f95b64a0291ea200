"""Captions and pictures of transformers, encoded once: what is loaded, made again, and gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_flow_models
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_models import write_picture
from torch import Tensor

from nested_core.training import diffusers_model
from nested_core.training.__main__ import main
from nested_core.training.base_model import Caption, PictureSize
from nested_core.training.config import TrainingConfig
from nested_core.training.data import open_data
from nested_core.training.data.batches import Stripe, WholeData
from nested_core.training.diffusers_model import load_base_model
from nested_core.training.disk_cache import DiskCache, ModelDigests, key_of, key_of_tensor
from nested_core.training.errors import TrainingError
from nested_core.training.fill_cache import fill_cache

SIZE = PictureSize(64, 64, 0, 0, 64, 64)
CAPTIONS = [Caption("a photo of {subject} in Rome", "old man"), Caption("{subject}", "cat")]


@pytest.fixture
def loaded(monkeypatch) -> list[tuple[str, ...]]:
    """What was left out of each pipeline that was loaded."""
    calls: list[tuple[str, ...]] = []
    original = diffusers_model._load_without

    def load(base: str, dtype: torch.dtype, left_out: Any) -> Any:
        calls.append(tuple(left_out))
        return original(base, dtype, left_out)

    monkeypatch.setattr(diffusers_model, "_load_without", load)
    return calls


@pytest.fixture
def train(tmp_path) -> Callable[..., Path]:
    """Runs the command; the run's folder."""

    def run(settings: dict[str, Any], *arguments: str, **changes: Any) -> Path:
        changed = {**settings, **changes}
        (tmp_path / "run.json").write_text(json.dumps(changed))
        assert main(["--config", str(tmp_path / "run.json"), *arguments]) == 0
        return Path(changed["output"])

    return run


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.safetensors"))


def encoder_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "encoder.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def parts_in_use(loaded: list[tuple[str, ...]]) -> list[str]:
    return ["transformer" if "transformer" not in each else "encoders" for each in loaded]


@pytest.mark.parametrize("family", tuple(tiny_flow_models.PIPELINES))
def test_what_is_read_is_what_was_encoded(
    family, flow_base, image_encoder_folder, tmp_path
) -> None:
    folders = str(flow_base(family)), str(image_encoder_folder)
    plain = load_base_model(*folders)
    pixels = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()

    def answers(model: Any) -> list[Tensor]:
        text = model.encode_captions(CAPTIONS, [SIZE] * 2)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        latents = model.encode_pixels(pixels, generators)
        times = torch.tensor([200.0, 700.0])
        return [text.positions, model.predict(latents, times, text, None), latents]

    wanted = answers(plain)
    for is_read in (False, True):
        model: Any = load_base_model(*folders, cache_folder=tmp_path / "cache")
        assert model.encoding.modules() == []
        found = answers(model)
        assert (model.encoding.modules() == []) == is_read
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_nothing_that_encodes_is_loaded_again(run_settings, train, loaded, tmp_path) -> None:
    settings = run_settings("flux", cache="disk", cache_folder=str(tmp_path / "cache"))
    first = train(settings, drop_text=0.3, drop_both=0.1)
    assert parts_in_use(loaded) == ["transformer", "encoders", "encoders"]
    readers = {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    assert [set(each) for each in loaded] == [
        readers | {"vae"},
        readers | {"transformer"},
        {"vae", "transformer"},
    ]
    made = {path: path.read_bytes() for path in entries(tmp_path / "cache")}
    loaded.clear()
    second = train(settings, output=str(tmp_path / "second"), drop_text=0.3, drop_both=0.1)
    assert parts_in_use(loaded) == ["transformer"]
    assert {path: path.read_bytes() for path in entries(tmp_path / "cache")} == made
    ours, theirs = encoder_of(first), encoder_of(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_cached_run_follows_the_trajectory_of_one_without(run_settings, train, tmp_path) -> None:
    plain = train(run_settings("flux"))
    cached = train(run_settings("flux", cache="disk", output=str(tmp_path / "cached")))
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4)
    assert (cached / "cache").is_dir()


def test_a_run_that_goes_on_is_the_run_that_never_stopped(run_settings, train, tmp_path) -> None:
    long = {"cache": "disk", "steps": 4, "save_every": 100, "drop_text": 0.3, "accumulation": 2}
    whole = train(run_settings("qwen_image", output=str(tmp_path / "whole"), **long))
    parts = run_settings("qwen_image", **long)
    train(parts, steps=2)
    # Some entries are missing, so that they are made again alone.
    for path in entries(tmp_path / "run" / "cache")[::2]:
        path.unlink()
    resumed = train(parts, "--resume")
    assert losses(resumed) == losses(whole)
    ours, theirs = encoder_of(resumed), encoder_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def filled(flow_base, image_encoder_folder, tmp_path) -> Any:
    """A model whose cache holds two captions and a picture."""
    folders = str(flow_base("flux")), str(image_encoder_folder)
    model: Any = load_base_model(*folders, cache_folder=tmp_path / "cache")
    model.encoding.texts(CAPTIONS)
    model.encoding.posterior(torch.zeros(1, 3, 64, 64))
    model.encoding.release()
    return model


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "empty": lambda path, _: path.write_bytes(b""),
    "cut off": lambda path, _: path.write_bytes(path.read_bytes()[:-8]),
    "no safetensors": lambda path, _: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "another entry": lambda path, other: path.write_bytes(other.read_bytes()),
    "no key": lambda path, _: save_file(load_file(path), path),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_foreign_is_made_again(filled, damage, tmp_path, caplog) -> None:
    one, other = sorted((tmp_path / "cache" / "texts").glob("*/*.safetensors"))
    before = filled.encoding.texts(CAPTIONS)
    content = one.read_bytes()
    DAMAGES[damage](one, other)
    if damage == "a folder":
        with pytest.raises(TrainingError, match="cannot be written"):
            filled.encoding.texts(CAPTIONS)
        return
    after = filled.encoding.texts(CAPTIONS)
    assert torch.equal(after.context, before.context)
    assert one.read_bytes() == content
    assert f"{one}: is made again" in caplog.text


@pytest.mark.parametrize("change", ["name", "shape", "place", "number"])
def test_other_tensors_under_the_right_key_are_made_again(filled, change, caplog) -> None:
    encoding = filled.encoding
    key = encoding.text_key(CAPTIONS[0])
    tensors = encoding.cache.read("texts", key, lambda _: True)
    changed = {
        "name": {"positions": tensors["positions"]},
        "shape": {**tensors, "context": tensors["context"][0]},
        "place": {**tensors, "positions": tensors["positions"] + 10_000},
        "number": {**tensors, "context": tensors["context"] * torch.nan},
    }[change]
    encoding.cache.write("texts", key, changed)
    found = encoding.texts(CAPTIONS[:1])
    assert torch.equal(found.context, tensors["context"])
    assert "is made again" in caplog.text


def test_a_key_says_all_that_an_entry_follows_from(filled) -> None:
    encoding = filled.encoding
    keys = [encoding.text_key(each) for each in (*CAPTIONS, Caption("{subject}", "dog"))]
    encoding.dtype = torch.bfloat16
    keys.append(encoding.text_key(CAPTIONS[0]))
    encoding.digests = {**encoding.digests, "texts": "other"}
    keys.append(encoding.text_key(CAPTIONS[0]))
    assert len(set(keys)) == 5
    pictures = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 128), torch.ones(1, 3, 64, 64)
    assert len({encoding.picture_key(each) for each in pictures}) == 3
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of_tensor(torch.zeros(2)) != key_of_tensor(torch.zeros(2, dtype=torch.float64))


def test_a_models_hash_is_of_its_files_contents(tmp_path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    (model / "vae").mkdir(parents=True)
    weights = model / "vae" / "w.safetensors"
    weights.write_bytes(b"one")
    first = ModelDigests(cache).of(model, ["vae"])
    os.utime(weights, (1, 1))
    assert ModelDigests(cache).of(model, ["vae"]) == first
    weights.write_bytes(b"two")
    assert ModelDigests(cache).of(model, ["vae"]) != first
    weights.write_bytes(b"one")
    (cache / "models.json").write_text("[")
    assert ModelDigests(cache).of(model, ["vae"]) == first


def test_a_changed_picture_is_encoded_before_training(
    run_settings, loaded, tmp_path, caplog
) -> None:
    config = TrainingConfig(**run_settings("flux", cache="disk"))
    data = tmp_path / "data"

    def fill() -> int:
        model: Any = load_base_model(
            config.base, config.image_encoder, cache_folder=config.cache_path
        )
        loaded.clear()
        open_one = open_data(config, model.image_encoder.image_size)
        fill_cache(model.encoding, open_one, config, Accelerator(cpu=True))
        assert model.encoding.modules() == []
        return len(list((tmp_path / "run" / "cache" / "pictures").glob("*/*")))

    assert fill() == 6
    assert len(loaded) == 2
    assert fill() == 6
    assert loaded == []
    write_picture(data / "1.png", 77)
    assert fill() == 7
    assert len(loaded) == 1
    (data / "2.png").write_bytes(b"no picture")
    assert fill() == 7


def test_processes_share_the_work(run_settings, tmp_path) -> None:
    config = TrainingConfig(**run_settings("flux"))
    data = open_data(config, 32)
    assert isinstance(data, WholeData)
    texts = [[caption.text for caption, _ in data.contents(Stripe(n, 2))] for n in (0, 1)]
    assert [len(each) for each in texts] == [3, 3]
    assert len({text for each in texts for text in each}) == 6


def test_the_grids_need_the_vae_and_no_text_encoder(run_settings, train, loaded) -> None:
    train(run_settings("flux", cache="disk", sample_every=2, sample_steps=1))
    assert parts_in_use(loaded) == ["transformer", *["encoders"] * 3]
    assert "vae" not in loaded[-1]


def test_a_unet_has_no_cache(settings, tmp_path, caplog) -> None:
    (tmp_path / "run.json").write_text(json.dumps(settings(cache="disk")))
    assert main(["--config", str(tmp_path / "run.json")]) == 2
    assert "cache is disk, expected none" in caplog.text


def test_writers_leave_nothing_unfinished(tmp_path) -> None:
    cache = DiskCache(tmp_path)
    cache.write("texts", "ab" * 32, {"x": torch.zeros(2)})
    assert cache.holds("texts", "ab" * 32)
    assert len(list(tmp_path.rglob("*.unfinished"))) == 0
