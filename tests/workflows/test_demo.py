"""The demo: its workflow, the right answers to its prompts, its picture and its figures."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import demo
from tiny_world import files, prompts, sheet, world

CAST, PHOTOGRAPHS = prompts.draw_cast(seed=1)

# What the shipped weights must show on the demo's prompts, in dB: well below what they do show, far
# above what chance gives.
LEAST_GAIN, MOST_LOSS = 8.0, 0.5


def _run_demo(monkeypatch, *arguments: str, base: Path, server: str = "http://127.0.0.1:9") -> int:
    monkeypatch.setenv("NESTED_ATTENTION_BASE_DIRECTORY", str(base))
    monkeypatch.setattr(sys, "argv", ["demo", "--server", server, *arguments])
    return demo.main()


EXAMPLE = demo.load_workflow()["prompt"]["inputs"]["text"]


@pytest.mark.parametrize("text", [*demo.PROMPTS, EXAMPLE])
def test_every_prompt_of_the_demo_has_a_right_answer(text):
    request = prompts.read_prompt(text, CAST)
    scene, *subjects = text.split(", at the ")
    places = {token: place for place, token in map(str.split, subjects)}
    style, background = scene.split()[1], scene.partition(" in the ")[2].split()[0]
    prop = scene.partition(" under a ")[2] or "nothing"
    placed = [world.Placed(CAST[token], place) for token, place in places.items()]
    masks = [world.subject_mask(each) for each in placed]
    assert request.tokens == tuple(places)
    assert np.array_equal(request.right, world.draw(placed, world.Scene(style, background, prop)))
    assert np.array_equal(request.mask, sum(masks) > 0)


def test_a_prompt_that_the_world_cannot_draw_is_refused_with_the_nearest(
    monkeypatch, tmp_path, capsys
):
    wrong = "a photo in the jungle, at the left <anna>"
    assert _run_demo(monkeypatch, "--prompt", wrong, base=tmp_path) == 1
    text = capsys.readouterr().err
    assert f"prompt: found '{wrong}', which the tiny world cannot draw" in text
    assert "backgrounds: forest, beach, city, desert" in text
    assert "\n  a photo in the beach, at the left <anna>" in text


@pytest.mark.parametrize(
    "model, remedy", [("unet", "--preset cpu --output"), ("joint", "--model joint")]
)
def test_missing_weights_are_named_with_the_remedy(monkeypatch, tmp_path, capsys, model, remedy):
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path / "nowhere")
    assert _run_demo(monkeypatch, "--model", model, base=tmp_path) == 1
    text = capsys.readouterr().err
    assert f"demo: {tmp_path / 'nowhere' / files.FILES[model].base}: there is no such file" in text
    assert f" and {files.FILES[model].encoder} in " in text
    assert remedy in text
    assert files.FOLDER_VARIABLE in text


def test_subjects_depend_on_the_seed_alone():
    again, photographs = prompts.draw_cast(seed=1)
    other, _ = prompts.draw_cast(seed=2)
    assert again == CAST
    assert {token: each.kind for token, each in CAST.items()} == prompts.TOKENS
    assert all(again[token] != other[token] for token in CAST)
    assert all(np.array_equal(photographs[token], PHOTOGRAPHS[token]) for token in CAST)


def test_without_the_pack_nothing_of_it_is_left():
    graph = demo.workflow_for("a photo, at the left <anna>, at the right <rex>", seed=7)
    before = copy.deepcopy(graph)
    plain = demo.without_pack(graph)
    assert not [n for n in plain.values() if n["class_type"].startswith("NestedAttention_")]
    assert plain["prompt"]["inputs"]["text"] == "a photo, at the left person, at the right dog"
    assert plain["sampler"]["inputs"]["model"] == ["checkpoint", 0]
    assert plain["prompt"]["inputs"]["clip"] == plain["negative"]["inputs"]["clip"]
    assert plain["prompt"]["inputs"]["clip"] == ["checkpoint", 1]
    same = {"model", "positive", "negative"}
    settings = {name: v for name, v in graph["sampler"]["inputs"].items() if name not in same}
    assert settings.items() <= plain["sampler"]["inputs"].items()
    assert settings["seed"] == 7
    assert graph == before


def test_psnr_is_of_the_chosen_pixels_alone():
    right = np.full((32, 32, 3), 0.5, np.float32)
    where = np.zeros((32, 32), bool)
    where[:4] = True
    picture = right.copy()
    picture[:4] += 0.1
    assert prompts.psnr(picture, right, where) == pytest.approx(20.0, abs=1e-3)
    assert prompts.psnr(picture, right, ~where) == 100.0


def _row(text: str) -> sheet.Row:
    request = prompts.read_prompt(text, CAST)
    return sheet.Row(request, request.right, 1.0 - request.right, 9.0, 18.0)


def test_the_sheet_shows_photographs_answers_and_both_pictures():
    text = demo.PROMPTS[0]
    row = _row(text)
    picture = np.asarray(sheet.make_sheet([row], PHOTOGRAPHS, "title"))
    columns = [PHOTOGRAPHS["<anna>"], row.request.right, row.without, row.with_pack]
    for number, shown in enumerate(columns):
        left = 32 + number * 140
        cell = np.asarray(sheet.to_image(shown).resize((128, 128), Image.Resampling.NEAREST))
        tops = [top for top in range(80, 140) if _is_at(picture, cell, top, left)]
        assert len(tops) == 1, f"column {number}"


def _is_at(picture, cell, top: int, left: int) -> bool:
    return np.array_equal(picture[top : top + 128, left : left + 128], cell)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_sheet_has_room_for_every_prompt(count):
    rows = [_row(text) for text in demo.PROMPTS[-count:]]
    picture = sheet.make_sheet(rows, PHOTOGRAPHS, "title")
    assert picture.width == (612 if count == 1 else 1212)
    paper = np.asarray(picture)[-4:]
    assert (paper == paper[0, 0]).all()


@pytest.mark.server
@pytest.mark.parametrize("model", files.FILES)
def test_the_workflow_names_nodes_and_inputs_that_exist(server, model):
    node_info = server.get("/object_info")
    for entry in demo.load_workflow(model).values():
        inputs = node_info[entry["class_type"]]["input"]
        known = {name for group in inputs.values() for name in group}
        given = {name.partition(".")[0] for name in entry["inputs"]}
        assert given <= known
        assert set(inputs.get("required", {})) <= given
        assert entry["inputs"].get("model_name") in (None, model)
        assert entry["_meta"]["title"]


@pytest.fixture(scope="module")
def drawn(server, tmp_path_factory):
    """What the demo writes with the shipped weights: figures and picture."""
    folder = tmp_path_factory.mktemp("demo")
    figures, picture = folder / "figures.json", folder / "picture.png"
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ("--json", str(figures), "--output", str(picture))
        assert _run_demo(monkeypatch, *arguments, base=server.base, server=server.url) == 0
    return json.loads(figures.read_text()), picture


@pytest.mark.server
def test_a_transformer_keeps_the_subject_too(server, monkeypatch, tmp_path):
    figures = tmp_path / "figures.json"
    arguments = ("--model", "joint", "--json", str(figures), "--output", str(tmp_path / "a.png"))
    arguments = (*arguments, "--prompt", demo.PROMPTS[0])
    assert _run_demo(monkeypatch, *arguments, base=server.base, server=server.url) == 0
    subject = json.loads(figures.read_text())["subject_psnr"]
    assert subject["with"] - subject["without"] > LEAST_GAIN


@pytest.mark.server
def test_the_demo_writes_a_picture_and_figures(drawn):
    figures, picture = drawn
    assert set(figures) == {"subject_psnr", "background_psnr"}
    for each in figures.values():
        assert set(each) == {"without", "with"}
        assert all(0.0 < value < 60.0 for value in each.values())
    with Image.open(picture) as image:
        assert image.width == 1212
        assert len(image.getcolors(1 << 20) or ()) > 100


@pytest.mark.server
def test_the_subject_is_in_the_picture_and_the_rest_of_the_picture_stays(drawn):
    figures, _ = drawn
    subject, background = figures["subject_psnr"], figures["background_psnr"]
    assert subject["with"] - subject["without"] > LEAST_GAIN
    assert background["without"] - background["with"] < MOST_LOSS
