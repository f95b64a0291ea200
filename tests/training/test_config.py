"""Settings from files and the command line; optimisers by name; learning rates."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from nested_core.training.__main__ import main
from nested_core.training.config import TrainingConfig, parse_arguments, read_config_file
from nested_core.training.errors import TrainingError
from nested_core.training.optimiser import learning_rate_factor, make_optimiser

NEEDED = ["--output", "o", "--base", "b", "--image-encoder", "i", "--data", "d"]


def test_the_command_line_wins_over_the_file(tmp_path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"steps": 7, "learning_rate": 1, "noun": "dog"}))
    config, resume = parse_arguments(
        [
            *NEEDED,
            "--config",
            str(file),
            "--steps",
            "9",
            "--no-tensorboard",
            "--resume",
            "--optimiser-options",
            '{"eps": 1e-6}',
            "--sample-prompts",
            "a {subject}",
            "b {subject}",
        ]
    )
    assert (config.steps, config.learning_rate, config.noun) == (9, 1.0, "dog")
    assert (config.tensorboard, resume) == (False, True)
    assert config.optimiser_options == {"eps": 1e-6}
    assert config.sample_prompts == ["a {subject}", "b {subject}"]
    assert config.batch_size == TrainingConfig().batch_size


def test_what_a_run_writes_it_reads(tmp_path) -> None:
    config, _ = parse_arguments([*NEEDED, "--value-norm", "none", "--gradient-checkpointing"])
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    assert TrainingConfig(**read_config_file(file)) == config


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")
def test_toml(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'noun = "cat"\nsample_prompts = ["a {subject}"]\n[optimiser_options]\neps = 1e-7\n'
    )
    assert read_config_file(file) == {
        "noun": "cat",
        "sample_prompts": ["a {subject}"],
        "optimiser_options": {"eps": 1e-7},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 1}, "run.json: step: no such setting"),
        ({"steps": "many"}, "run.json: steps is 'many', expected int"),
        ({"steps": True}, "run.json: steps is True, expected int"),
        ({"value_norm": "some"}, "value_norm is 'some', expected one of per_head, all_heads, none"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"drop_text": 0.99}, "sum to 1 at most"),
        ([], "is no table of settings"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message, caplog) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(settings))
    assert main([*NEEDED, "--config", str(file)]) == 2
    assert message in caplog.text


def test_what_is_missing_is_named(caplog) -> None:
    assert main(NEEDED[2:]) == 2
    assert "output is not set. Give --output" in caplog.text


def test_help_lists_every_setting(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in vars(TrainingConfig()):
        assert f"--{name.replace('_', '-')}" in shown


def test_optimisers_by_name() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    assert isinstance(make_optimiser("AdamW", weights, 1e-3, {"eps": 1e-5}), torch.optim.AdamW)
    assert isinstance(make_optimiser("SGD", weights, 1e-3, {"momentum": 0.9}), torch.optim.SGD)
    with pytest.raises(
        TrainingError, match=r"optimiser Adum: torch.optim has .*AdamW.*bitsandbytes"
    ):
        make_optimiser("Adum", weights, 1e-3, {})
    with pytest.raises(TrainingError, match=r"does not take the options {'hat': 1}"):
        make_optimiser("SGD", weights, 1e-3, {"hat": 1})


def test_learning_rates() -> None:
    def factors(kind):
        return [learning_rate_factor(kind, step, 2, 6) for step in range(6)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1]
    assert factors("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert factors("cosine")[2:] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-5)
