"""Scenes of several subjects: the figures are right, and the evaluation draws every way."""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")
ROOT = Path(os.environ.get("NESTED_ATTENTION_ROOT") or Path(__file__).parents[2])
sys.path += [str(ROOT), str(ROOT / "demo")]
from random_world import random_weights  # noqa: E402
from tiny_world import data, evaluate, world  # noqa: E402
from tiny_world.evaluation.several import drawing, open_base  # noqa: E402
from tiny_world.evaluation.several.bleed import measure  # noqa: E402
from tiny_world.evaluation.several.scenes import SETTINGS, company  # noqa: E402

OPEN = [name for name, setting in SETTINGS.items() if not setting.says_places]
SAID = [name for name, setting in SETTINGS.items() if setting.says_places]


def _with_identities(group, identities):
    placed = [replace(one, identity=who) for one, who in zip(group.placed, identities, strict=True)]
    return world.draw(placed, group.scene)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_right_answer_has_no_bleed(name):
    group = company(0, name, 1)
    figures = measure(group, group.right)
    assert figures.bleed == figures.stranger == 0.0
    assert figures.subject_psnr > 60.0
    assert figures.background_psnr > 60.0


@pytest.mark.parametrize("index", [0, 1])
def test_everybody_looking_like_the_other_is_a_bleed_of_one(index):
    group = company(0, "two alike, places said", index)
    swapped = _with_identities(group, [each.identity for each in reversed(group.placed)])
    assert measure(group, swapped).bleed == pytest.approx(1.0, abs=1e-5)


def test_half_of_the_other_is_a_bleed_of_a_half():
    group = company(0, "two alike, places said", 0)
    swapped = _with_identities(group, [each.identity for each in reversed(group.placed)])
    assert measure(group, (group.right + swapped) / 2).bleed == pytest.approx(0.5, abs=1e-5)


def test_where_places_are_left_open_both_ways_are_right():
    group = company(0, "two alike", 0)
    swapped = _with_identities(group, [each.identity for each in reversed(group.placed)])
    assert measure(group, swapped).bleed == 0.0


@pytest.mark.parametrize("name", OPEN)
def test_open_prompts_say_no_place(name):
    words = company(0, name, 0).caption(["<a>", "<b>"])
    assert "<a>" in words
    assert "<b>" in words
    assert not any(f"at the {place}" in words for place in world.PLACES)


@pytest.mark.parametrize("name", SETTINGS)
def test_companies_are_repeatable_and_differ(name):
    company.cache_clear()
    first = company(0, name, 0)
    company.cache_clear()
    assert np.array_equal(first.right, company(0, name, 0).right)
    assert not np.array_equal(first.right, company(1, name, 0).right)


def test_the_open_base_hears_captions_without_places():
    captions = data.open_examples(5, 0, 60).captions
    without = [words for words in captions if not any(f"the {p}" in words for p in world.PLACES)]
    assert 0.5 < len([words for words in without if words]) / len(captions) < 0.9
    assert len({words.count(",") for words in without if words} & {2}) == 1


def test_the_evaluation_draws_every_way(tmp_path, monkeypatch):
    weights = random_weights(tmp_path)
    monkeypatch.setattr(drawing, "open_weights", functools.partial(open_base.open_weights, steps=1))
    ways = [way for way in drawing.WAYS if not way.decoupled]
    monkeypatch.setattr("tiny_world.evaluation.several.report.WAYS", ways)
    monkeypatch.setattr("tiny_world.evaluation.several.report._SHOWN", [ways[0].name])
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--methods", "none", "--identities", "1", "--steps", "2", "--several", "2"]
    options += ["--weights", str(weights), "--output", str(tmp_path / "out")]
    assert evaluate.main([*options, "--json", str(rows), "--report", str(page)]) == 0
    found = [row for row in json.loads(rows.read_text()) if "several" in row["method"]]
    assert len(found) == len(SETTINGS) * len(ways)
    assert all(np.isfinite(row["subject_psnr"]) and row["bleed"] >= 0.0 for row in found)
    assert "## Several subjects" in page.read_text()
    assert (tmp_path / "page-several.png").is_file()

    monkeypatch.setattr(drawing.Drawings, "_draw", None)  # everything is there already
    assert evaluate.main([*options, "--json", str(rows)]) == 0
