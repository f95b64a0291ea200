from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nested_core.__main__ import main
from nested_core.checkpoint import encoder_hash, load_encoder, save_encoder, save_subject

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit code, standard output and standard error of `inspect FILE`."""

    def run(path: Path) -> tuple[int, str, str]:
        code = main(["inspect", str(path)])
        return (code, *capsys.readouterr())

    return run


def rows(output: str, label: str) -> list[str]:
    """What follows a label, line by line."""
    return [line[17:] for line in output.splitlines() if line[2:17].strip() == label]


@pytest.fixture
def foreign(make_encoder: Any, encoder_config: Any, sd15_site_dims: Any) -> dict[str, Any]:
    """Tensors of a foreign file in ComfyUI's names."""
    sizes = replace(encoder_config.resampler, dim_head=64, heads=1)
    encoder = make_encoder(replace(encoder_config, resampler=sizes), sd15_site_dims)
    return {f"model.{name}": tensor for name, tensor in encoder.state_dict().items()}


def test_a_native_encoder_is_described(tmp_path: Path, make_encoder: Any, inspect: Any):
    encoder = make_encoder(dtype=torch.bfloat16)
    save_encoder(encoder, tmp_path / "face.safetensors")
    code, output, error = inspect(tmp_path / "face.safetensors")
    assert (code, error) == (0, "")
    assert output.splitlines()[0] == "face.safetensors"
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    expected = {
        "format": "encoder, native format",
        "tensors": "37 BF16",
        "parameters": f"{parameters:,}",
        "noun": "person",
        "base": "sdxl",
        "image encoder": "kind clip_vision, hidden_size 16, image_size 224, "
        "hidden_state penultimate",
        "resampler": "embedding_dim 16, dim 16, depth 2, dim_head 8, heads 2, num_queries 4, "
        "output_dim 24, ff_mult 4",
        "value norm": "mode per_head, scale 2.0",
        "sites": "4: d4.0 m0.0-1 u3.0",
        "layout": "none of the known base models'",
        "widths": "2 sites of 16, 2 sites of 32",
        "hash": f"sha256 {encoder_hash(encoder)}",
    }
    assert {label: rows(output, label) for label in expected} == {
        label: [text] for label, text in expected.items()
    }
    assert len(output.splitlines()) == 1 + len(expected)


def test_a_foreign_encoder_is_described_key_by_key(
    tmp_path: Path, foreign: dict[str, Any], inspect: Any
):
    path = tmp_path / "foreign.safetensors"
    save_file(foreign, path)
    code, output, error = inspect(path)
    assert (code, error) == (0, "")
    readings = {f"{key} -> {key.removeprefix('model.')}" for key in foreign}
    assert set(rows(output, "key")) == readings
    assert rows(output, "layout") == ["SD1.5"]
    assert rows(output, "hash") == [f"sha256 {encoder_hash(load_encoder(path))}"]


def test_what_was_assumed_of_a_foreign_encoder_is_said(
    tmp_path: Path, foreign: dict[str, Any], inspect: Any
):
    save_file(foreign, tmp_path / "foreign.safetensors")
    assumed = " ".join(rows(inspect(tmp_path / "foreign.safetensors")[1], "assumed"))
    for assumption in (
        "noun 'person'",
        "dim_head 64: IP-Adapter's habit",
        "hidden_state penultimate: IP-Adapter's habit; not known for the authors' encoder",
        "image_size 224",
        "value norm per_head, scale 2",
    ):
        assert assumption in assumed


def test_a_foreign_encoder_that_is_not_understood_is_described_as_far_as_it_is(
    tmp_path: Path, foreign: dict[str, Any], inspect: Any
):
    del foreign["model.resampler.latents"]
    foreign["model.mystery"] = torch.zeros(3)
    save_file(foreign, tmp_path / "foreign.safetensors")
    code, output, error = inspect(tmp_path / "foreign.safetensors")
    assert code == 2
    assert "model.mystery -> not explained" in rows(output, "key")
    assert len(rows(output, "key")) == len(foreign)
    assert "Nothing found for resampler.latents" in error
    assert "1 keys not explained: model.mystery" in error


def test_the_way_in_which_numbers_were_read_is_said(
    tmp_path: Path, foreign: dict[str, Any], inspect: Any
):
    sites = [key for key in foreign if key.endswith("to_k.weight")]
    order = {"input": 0, "output": 1, "middle": 2}
    sites.sort(key=lambda key: order[key.split(".")[2]])
    for place, key in enumerate(sites):
        for projection in ("to_k", "to_v"):
            name = key.replace("to_k", projection)
            foreign[f"ip_adapter.{2 * place + 1}.{projection}_ip.weight"] = foreign.pop(name)
    save_file(foreign, tmp_path / "foreign.safetensors")
    code, output, _ = inspect(tmp_path / "foreign.safetensors")
    assert code == 0
    assert rows(output, "note") == [
        "The places are those of SD1.5 counted 1, 3, 5, ... in the order down, up, middle; "
        "no other known way fits."
    ]


def test_a_subject_is_described_without_its_encoder(
    tmp_path: Path, make_subject: Any, inspect: Any
):
    subject = make_subject(references=(4, 8))
    save_subject(subject, tmp_path / "anna.safetensors")
    code, output, error = inspect(tmp_path / "anna.safetensors")
    assert (code, error) == (0, "")
    assert rows(output, "format") == ["subject"]
    assert rows(output, "noun") == ["person"]
    assert rows(output, "references") == ["2, tokens of each: 4, 8"]
    assert rows(output, "thumbnail") == ["none"]
    assert rows(output, "encoder") == [f"sha256 {encoder_hash(subject.encoder)}"]


def test_a_damaged_encoder_exits_with_2_and_one_line(
    tmp_path: Path, make_encoder: Any, inspect: Any
):
    path = tmp_path / "face.safetensors"
    save_encoder(make_encoder(), path)
    path.write_bytes(path.read_bytes()[:-1])
    code, _, error = inspect(path)
    assert code == 2
    assert error.startswith("error: face.safetensors: is cut off (")
    assert error.count("\n") == 1


def test_a_file_of_something_else_exits_with_2_and_says_what_it_holds(tmp_path: Path, inspect: Any):
    save_file({"lora_up.weight": torch.zeros(2, 3)}, tmp_path / "lora.safetensors")
    code, output, error = inspect(tmp_path / "lora.safetensors")
    assert code == 2
    assert rows(output, "tensors") == ["1 F32"]
    assert rows(output, "parameters") == ["6"]
    assert "expected an encoder or a subject of Nested Attention, found 1 tensors: lora_up" in error


def test_of_a_base_model_alone_its_parts_are_told(tmp_path: Path, inspect: Any):
    keys = ["input_blocks.0.0.weight", "out.2.weight"]
    tensors = {f"model.diffusion_model.{key}": torch.zeros(2, 2) for key in keys}
    save_file(tensors | {"mystery": torch.zeros(1)}, tmp_path / "base.safetensors")
    code, output, _ = inspect(tmp_path / "base.safetensors")
    assert code == 2
    assert rows(output, "set aside") == [
        "UNet, ComfyUI's names under model.diffusion_model.: 2 tensors, 32 bytes"
    ]
    assert "mystery -> not explained" in rows(output, "key")


def test_a_missing_file_exits_with_2(tmp_path: Path, inspect: Any):
    code, _, error = inspect(tmp_path / "gone.safetensors")
    assert (code, error.startswith("error: gone.safetensors: no such file in ")) == (2, True)


def test_a_failing_disk_exits_with_2(tmp_path: Path, inspect: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(path: str, choices: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("nested_core.__main__.describe", fail)
    code, _, error = inspect(tmp_path / "face.safetensors")
    assert (code, error) == (2, "error: [Errno 5] Input/output error\n")


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_pickle_is_never_loaded(
    tmp_path: Path, inspect: Any, monkeypatch: pytest.MonkeyPatch, name: str
):
    (tmp_path / name).write_bytes(pickle.dumps({"latents": 1}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("pickle.load was called"))
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("pickle.loads was called"))
    code, _, error = inspect(tmp_path / name)
    assert code == 2
    assert "Convert it to .safetensors with a tool you trust" in error


def test_names_cannot_send_commands_to_the_terminal(tmp_path: Path, inspect: Any):
    save_file({"\x1b[2Jname\nline": torch.zeros(1)}, tmp_path / "evil.safetensors")
    code, _, error = inspect(tmp_path / "evil.safetensors")
    assert code == 2
    assert "\x1b" not in error
    assert r"\x1b[2Jname\nline" in error


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["delete", "x"]])
def test_wrong_arguments_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m nested_core" in capsys.readouterr().err


def run_module(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "nested_core", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_it_runs_as_a_module_on_a_terminal_without_unicode(
    tmp_path: Path, make_encoder: Any, encoder_config: Any
):
    path = tmp_path / "face.safetensors"
    save_encoder(make_encoder(replace(encoder_config, noun="Hündin")), path)
    result = run_module("inspect", str(path), capture_output=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert rows(result.stdout, "noun") == [r"H\xfcndin"]


def test_it_never_shows_a_traceback(tmp_path: Path):
    result = run_module("inspect", str(tmp_path), capture_output=True)
    assert result.returncode == 2
    assert result.stderr.endswith("Choose a file.\n")
    assert "Traceback" not in result.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, make_encoder: Any):
    save_encoder(make_encoder(), tmp_path / "face.safetensors")
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = run_module(
            "inspect", str(tmp_path / "face.safetensors"), stdout=write_end, stderr=subprocess.PIPE
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (0, "")
