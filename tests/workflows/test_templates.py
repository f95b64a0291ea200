"""The templates as the gallery offers them: nothing is missing, and each says what it needs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from serving import EXAMPLES, ROOT, load_file

PHOTOGRAPHS = ROOT / "nodes" / "photographs"
EXAMPLE = "NestedAttention_ExamplePhotograph"
LARGEST_PHOTOGRAPH = 5_000  # bytes
LARGEST_CARD = 60_000
each_template = pytest.mark.parametrize("template", EXAMPLES, ids=lambda path: path.stem)


def nodes_of(template) -> list[dict]:
    return json.loads(template.read_text(encoding="utf-8"))["nodes"]


def note_of(template) -> str:
    (note,) = (node for node in nodes_of(template) if node["type"] == "MarkdownNote")
    return note["widgets_values"][0]


@each_template
def test_a_template_needs_no_picture_of_the_users(template):
    nodes = nodes_of(template)
    assert not [node for node in nodes if node["type"] == "LoadImage"]
    chosen = [node["widgets_values"][0] for node in nodes if node["type"] == EXAMPLE]
    assert all((PHOTOGRAPHS / f"{name}.png").is_file() for name in chosen)
    assert bool(chosen) == ("*Load Image*" in note_of(template))


@each_template
def test_a_template_says_where_its_models_come_from(template):
    note = note_of(template)
    for node in nodes_of(template):
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://")
            assert model["url"].partition("?")[0].endswith(f"/{model['name']}")
            assert model["name"].removesuffix(".safetensors") in note
            assert "licence" in note
        if node["type"] == "CheckpointLoaderSimple":
            assert [model["directory"] for model in node["properties"]["models"]] == ["checkpoints"]


@each_template
def test_the_note_has_room_above_everything_else(template):
    nodes = nodes_of(template)
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    others = [node["pos"][1] for node in nodes if node is not note]
    assert note["pos"][1] + note["size"][1] < min(others)


@each_template
def test_the_picture_in_the_gallery_is_small_and_shows_the_photographs(template):
    path = template.with_suffix(".jpg")
    assert path.stat().st_size < LARGEST_CARD
    with Image.open(path) as file:
        card = np.asarray(file.convert("RGB"), np.int16)
    assert card.shape == (464, 512, 3)
    chosen = [node["widgets_values"][0] for node in nodes_of(template) if node["type"] == EXAMPLE]
    if chosen:
        # The first photograph stands in the upper left corner: its sky, well inside a square.
        with Image.open(PHOTOGRAPHS / f"{chosen[0]}.png") as file:
            sky = np.asarray(file.convert("RGB"), np.int16)[20, 20]
        assert np.abs(card[20:30, 20:30] - sky).max() < 12


def test_example_photographs_are_small_and_large_enough_to_see():
    files = list(PHOTOGRAPHS.rglob("*.png"))
    assert {path.stem for path in PHOTOGRAPHS.glob("*.png")} >= {"anna", "ben", "rex", "bella"}
    for path in files:
        assert path.stat().st_size < LARGEST_PHOTOGRAPH, path.name
        with Image.open(path) as picture:
            assert picture.size == (512, 512)
    for mask in (PHOTOGRAPHS / "masks").glob("*.png"):
        assert (PHOTOGRAPHS / mask.name).is_file()


def test_example_photographs_are_what_their_script_draws():
    script = load_file(
        "example_photographs", ROOT / "demo" / "tiny_world" / "drawings" / "example_photographs.py"
    )
    drawn = dict(script.pictures())
    assert {f"{name}.png" for name in drawn} == {
        path.relative_to(PHOTOGRAPHS).as_posix() for path in PHOTOGRAPHS.rglob("*.png")
    }
    for name, picture in drawn.items():
        with Image.open(PHOTOGRAPHS / f"{name}.png") as file:
            assert np.array_equal(
                np.asarray(file.convert("RGB")), np.asarray(picture.convert("RGB"))
            ), name


def outputs_of(server, photograph: str) -> tuple[dict, list[np.ndarray]]:
    """What the node shows, and its picture and mask as a server saves them."""
    prompt = {
        "photo": {"class_type": EXAMPLE, "inputs": {"photograph": photograph}},
        "mask": {"class_type": "MaskToImage", "inputs": {"mask": ["photo", 1]}},
    }
    for source in ("photo", "mask"):
        prompt[f"save {source}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [source, 0], "filename_prefix": f"example_{source}"},
        }
    outputs = server.run(prompt)
    pictures = []
    for source in ("photo", "mask"):
        (image,) = outputs[f"save {source}"]["images"]
        with Image.open(server.base / "output" / image["filename"]) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return outputs["photo"], pictures


@pytest.mark.server
def test_an_example_photograph_comes_with_its_mask_and_is_shown(server):
    shown, (picture, mask) = outputs_of(server, "rex")
    with Image.open(PHOTOGRAPHS / "rex.png") as file:
        assert np.array_equal(picture, np.asarray(file.convert("RGB")))
    with Image.open(PHOTOGRAPHS / "masks" / "rex.png") as file:
        assert np.array_equal(mask[..., 0] > 127, np.asarray(file))
    assert len(shown["images"]) == 1


@pytest.mark.server
def test_a_picture_without_a_subject_is_masked_in_full(server):
    _, (picture, mask) = outputs_of(server, "two_people_pose")
    assert picture.shape == mask.shape
    assert mask.min() == 255


@pytest.mark.server
def test_every_photograph_in_the_folder_can_be_chosen(server):
    kind = server.get(f"/object_info/{EXAMPLE}")[EXAMPLE]["input"]["required"]["photograph"]
    assert sorted(path.stem for path in PHOTOGRAPHS.glob("*.png")) in (
        kind[0],
        kind[1].get("options"),
    )
