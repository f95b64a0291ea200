"""Scenes of several subjects: the figures are right, and the evaluation draws them by every method."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("accelerate")
from pack import ROOT

sys.path += [str(ROOT), str(ROOT / "demo")]
from tiny_world import world
from tiny_world_weights import random_weights

from lab import evaluate
from lab.ablations import open_base
from lab.drawing import catalogue, evaluation
from lab.measures.bleed import measure_group
from lab.report import results, several
from lab.subjects.groups import SETTINGS, group_prompt
from lab.training import data

OPEN = [name for name, setting in SETTINGS.items() if not setting.says_places]
SAID = [name for name, setting in SETTINGS.items() if setting.says_places]


def _with_identities(group, identities):
    swapped = zip(group.subjects, identities, strict=True)
    return world.draw([replace(placed, identity=who) for placed, who in swapped], group.scene)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_right_answer_has_no_bleed(name):
    group = group_prompt(0, name, 1)
    figures = measure_group(group, group.target)
    assert figures.bleed == figures.stranger == 0.0
    assert figures.subject_psnr > 60.0
    assert figures.background_psnr > 60.0


@pytest.mark.parametrize("index", [0, 1])
def test_everybody_looking_like_the_other_is_a_bleed_of_one(index):
    group = group_prompt(0, "two alike, places said", index)
    swapped = _with_identities(group, [placed.identity for placed in reversed(group.subjects)])
    assert measure_group(group, swapped).bleed == pytest.approx(1.0, abs=1e-5)


def test_half_of_the_other_is_a_bleed_of_a_half():
    group = group_prompt(0, "two alike, places said", 0)
    swapped = _with_identities(group, [placed.identity for placed in reversed(group.subjects)])
    assert measure_group(group, (group.target + swapped) / 2).bleed == pytest.approx(0.5, abs=1e-5)


def test_where_places_are_left_open_both_ways_are_right():
    group = group_prompt(0, "two alike", 0)
    swapped = _with_identities(group, [placed.identity for placed in reversed(group.subjects)])
    assert measure_group(group, swapped).bleed == 0.0


@pytest.mark.parametrize("name", OPEN)
def test_open_prompts_say_no_place(name):
    words = group_prompt(0, name, 0).caption(["<a>", "<b>"])
    assert "<a>" in words
    assert "<b>" in words
    assert not any(f"at the {place}" in words for place in world.PLACES)


@pytest.mark.parametrize("name", SETTINGS)
def test_groups_are_repeatable_and_differ(name):
    group_prompt.cache_clear()
    first = group_prompt(0, name, 0)
    group_prompt.cache_clear()
    assert np.array_equal(first.target, group_prompt(0, name, 0).target)
    assert not np.array_equal(first.target, group_prompt(1, name, 0).target)


def test_the_open_base_hears_captions_without_places():
    captions = data.open_examples(5, 0, 60).captions
    without = [words for words in captions if not any(f"the {p}" in words for p in world.PLACES)]
    assert 0.5 < len([words for words in without if words]) / len(captions) < 0.9
    assert len({words.count(",") for words in without if words} & {2}) == 1


def test_the_evaluation_draws_by_every_method(tmp_path, monkeypatch):
    weights = random_weights(tmp_path)
    quickly = functools.partial(open_base.open_weights, steps=1)
    monkeypatch.setattr(evaluation, "open_weights", quickly)
    known = catalogue.catalogue()
    chosen = tuple(method for method in known.several if method.name != "decoupled")
    fewer = replace(known, several=chosen)
    for module in (results, several):
        monkeypatch.setattr(module, "catalogue", lambda _: fewer)
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    options = ["--methods", "none", "--identities", "1", "--steps", "2", "--several", "2"]
    options += ["--weights", str(weights), "--output", str(tmp_path / "out")]
    assert evaluate.main([*options, "--json", str(rows), "--report", str(page)]) == 0
    found = [row for row in json.loads(rows.read_text()) if "several" in row["method"]]
    assert len(found) == len(SETTINGS) * len(chosen)
    assert all(np.isfinite(row["subject_psnr"]) and row["bleed"] >= 0.0 for row in found)
    assert "## Several subjects" in page.read_text()
    assert (tmp_path / "page-several.png").is_file()

    monkeypatch.setattr(evaluation, "draw", None)  # everything is there already
    assert evaluate.main([*options, "--json", str(rows)]) == 0
