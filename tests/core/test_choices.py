"""What no file tells is the user's choice: in loading, in `inspect`, and in the converter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from foreign_files import ip_adapter, processors, write
from hypothesis import given
from hypothesis import strategies as st

from nested_core.__main__ import main
from nested_core.checkpoint import (
    SETTINGS,
    encoder_hash,
    load_encoder,
    load_subject,
    parse_choices,
    save_encoder,
    save_subject,
)
from nested_core.errors import CheckpointError

CHOICES: list[tuple[str, Any]] = [
    ("noun", "dog"),
    ("base", "mine"),
    ("image_encoder.hidden_state", "last"),
    ("image_encoder.image_size", 336),
    ("value_norm.mode", "all_heads"),
    ("value_norm.scale", 1.5),
    ("resampler.dim_head", 32),
    ("resampler.heads", 4),
]


def entry(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture(params=["native", "foreign"])
def file(request: pytest.FixtureRequest, tmp_path: Path, encoders: Any) -> Path:
    path = tmp_path / "face.safetensors"
    if request.param == "foreign":
        return write(path, ip_adapter(encoders["sd15"]))
    save_encoder(encoders["sd15"], path)
    return path


def test_every_setting_is_tested():
    assert {name for name, _ in CHOICES} == set(SETTINGS)


@pytest.mark.parametrize(("name", "value"), CHOICES)
def test_a_choice_replaces_one_entry_and_makes_another_encoder(file: Path, name: str, value: Any):
    plain, chosen = load_encoder(file), load_encoder(file, {name: value})
    assert entry(chosen.config, name) == value != entry(plain.config, name)
    assert encoder_hash(chosen) != encoder_hash(plain)
    assert chosen.state_dict().keys() == plain.state_dict().keys()
    inner = [e.config.resampler.heads * e.config.resampler.dim_head for e in (plain, chosen)]
    assert inner == [64, 64]
    # Hashes are remembered for each file and configuration.
    assert encoder_hash(load_encoder(file)) == encoder_hash(plain)
    assert encoder_hash(load_encoder(file, {name: value})) == encoder_hash(chosen)


def test_a_choice_equal_to_the_file_is_the_same_encoder(file: Path):
    same = {"noun": "person", "value_norm.scale": 2, "resampler.heads": 1}
    assert encoder_hash(load_encoder(file, same)) == encoder_hash(load_encoder(file))


def test_heads_of_another_width_are_a_choice(
    tmp_path: Path, encoders: Any, make_encoder: Any, sd15_site_dims: Any
):
    config = encoders["sd15"].config
    narrow = replace(config, resampler=replace(config.resampler, dim_head=8, heads=5))
    encoder = make_encoder(narrow, sd15_site_dims)
    path = write(tmp_path / "face.safetensors", processors(encoder))
    with pytest.raises(CheckpointError, match=r"attention of width 40; .*dim_head of Load Encoder"):
        load_encoder(path)
    assert encoder_hash(load_encoder(path, {"resampler.heads": 5})) == encoder_hash(encoder)
    assert encoder_hash(load_encoder(path, {"resampler.dim_head": 8})) == encoder_hash(encoder)
    with pytest.raises(CheckpointError, match=r"resampler\.heads 3 does not fit: .* width 40"):
        load_encoder(path, {"resampler.heads": 3})
    with pytest.raises(CheckpointError, match=r"heads 5 and resampler\.dim_head 9 does not fit"):
        load_encoder(path, {"resampler.heads": 5, "resampler.dim_head": 9})


def test_a_subject_of_another_choice_is_refused(file: Path, tmp_path: Path, make_subject: Any):
    chosen = {"value_norm.scale": 3.0}
    path = tmp_path / "anna.safetensors"
    save_subject(make_subject(load_encoder(file, chosen)), path)
    load_subject(path, load_encoder(file, chosen))
    with pytest.raises(CheckpointError, match="was made with the encoder "):
        load_subject(path, load_encoder(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noun", "setting 'noun': expected NAME=VALUE, such as value_norm.scale=2"),
        ("scale=2", r"setting 'scale': unknown, expected one of noun, base, image_encoder"),
        ("resampler.dim=2", r"setting 'resampler.dim': unknown, .* told by the file's tensors"),
        ("value_norm.scale=two", "'value_norm.scale': is 'two', expected a number above 0"),
        ("value_norm.scale=-2", "'value_norm.scale': is '-2.0', expected a number above 0"),
        ("value_norm.scale=nan", "'value_norm.scale': is 'nan', expected a number above 0"),
        ("value_norm.scale=inf", "'value_norm.scale': is 'inf', expected a number above 0"),
        ("value_norm.mode=per_layer", "'per_layer', expected one of per_head, all_heads, none"),
        ("image_encoder.hidden_state=first", "'first', expected one of penultimate, last"),
        ("resampler.heads=2.5", "'resampler.heads': is '2.5', expected a whole number above 0"),
        ("resampler.heads=0", "'resampler.heads': is '0', expected a whole number above 0"),
        ("noun= ", "setting 'noun': is '', expected text"),
    ],
)
def test_a_wrong_choice_says_what_was_expected(file: Path, text: str, message: str):
    with pytest.raises(CheckpointError, match=message):
        load_encoder(file, parse_choices([text]))


def test_a_setting_is_chosen_once():
    with pytest.raises(CheckpointError, match="'noun': chosen twice"):
        parse_choices(["noun=dog", "noun=cat"])


@given(st.lists(st.text(max_size=30)))
def test_any_text_is_a_choice_or_a_checkpoint_error(texts: list[str]):
    try:
        assert set(parse_choices(texts)) <= set(SETTINGS)
    except CheckpointError:
        return


# ---- the command line


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Exit code, standard output and standard error of a command."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return command


SETS = ["--set", "value_norm.scale=3", "--set", "noun=dog", "--set", "resampler.heads=2"]


def test_what_is_converted_is_what_is_loaded_with_the_same_choices(
    file: Path, tmp_path: Path, run: Any
):
    output = tmp_path / "converted.safetensors"
    code, told, error = run("convert", file, output, *SETS)
    assert (code, error) == (0, "")
    direct = load_encoder(file, parse_choices(SETS[1::2]))
    assert encoder_hash(load_encoder(output)) == encoder_hash(direct)
    assert told == f"wrote converted.safetensors: 16 sites, sha256 {encoder_hash(direct)}\n"


def test_nothing_is_overwritten_unasked(file: Path, tmp_path: Path, run: Any):
    output = tmp_path / "converted.safetensors"
    output.write_text("precious")
    code, _, error = run("convert", file, output)
    assert (code, "exists already" in error, output.read_text()) == (2, True, "precious")
    assert run("convert", file, output, "--force")[0] == 0
    assert encoder_hash(load_encoder(output)) == encoder_hash(load_encoder(file))


def test_the_file_that_is_read_is_never_replaced(file: Path, run: Any):
    before = file.read_bytes()
    code, _, error = run("convert", file, file, "--force")
    assert (code, "is the file that is read" in error) == (2, True)
    assert file.read_bytes() == before


def test_only_what_loaders_list_is_written(file: Path, tmp_path: Path, run: Any):
    code, _, error = run("convert", file, tmp_path / "converted.bin")
    assert (code, "ends in .safetensors" in error) == (2, True)
    assert not (tmp_path / "converted.bin").exists()


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_an_unknown_setting_names_the_known_ones(
    file: Path, tmp_path: Path, run: Any, command: str
):
    output = [] if command == "inspect" else [tmp_path / "converted.safetensors"]
    code, _, error = run(command, file, *output, "--set", "scale=2")
    assert code == 2
    assert all(name in error for name in SETTINGS)


def test_inspect_tells_what_is_assumed_and_what_was_chosen(tmp_path: Path, encoders: Any, run: Any):
    path = write(tmp_path / "face.safetensors", ip_adapter(encoders["sd15"]))
    code, told, _ = run("inspect", path, *SETS)
    assert code == 0
    assert "  noun           dog\n" in told
    assert "  chosen         value_norm.scale 3.0\n" in told
    assert "  chosen         noun dog\n" in told
    assert "  chosen         resampler.heads 2\n" in told
    assert "  from shapes " in told
    assert "hidden_state penultimate: IP-Adapter's habit" in told
    assert "value norm per_head: the authors' app" in told
    assert "noun 'person'" not in told
    assert "dim_head 64" not in told
    expected = encoder_hash(load_encoder(path, parse_choices(SETS[1::2])))
    assert f"sha256 {expected}" in told


def test_inspect_of_a_native_file_tells_what_was_chosen(tmp_path: Path, encoders: Any, run: Any):
    save_encoder(encoders["sd15"], tmp_path / "face.safetensors")
    _, told, _ = run("inspect", tmp_path / "face.safetensors", "--set", "value_norm.mode=none")
    assert "  value norm     mode none, scale 2.0\n" in told
    assert "  chosen         value_norm.mode none\n" in told
    assert "assumed" not in told
