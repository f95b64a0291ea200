"""The templates for the tiny world: they run as they are, and what they draw is the right answer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from graph_to_api import api_prompt
from serving import ROOT, load_file
from tiny_world import files, prompts

templates = load_file("tiny_templates", ROOT / "demo" / "tiny_world" / "drawings" / "templates.py")
photographs = load_file(
    "example_photographs", ROOT / "demo" / "tiny_world" / "drawings" / "example_photographs.py"
)
CAST = {f"<{name}>": photographs.identity(name) for name in ("anna", "rex")}
LEAST_PSNR = 16.0  # dB on the subject; without the pack such pictures have 11


def give_tiny_world(server) -> None:
    """The encoder that its templates name."""
    folder = server.base / "models" / "nested_attention"
    shutil.copyfile(files.WEIGHTS / files.ENCODER_FILE, folder / templates.ENCODER_NAME)


def _prompt(server, name: str):
    give_tiny_world(server)
    graph = json.loads((templates.OURS / f"{name}.json").read_text(encoding="utf-8"))
    return api_prompt(graph, server.get("/object_info"))


def _drawn(server, prompt) -> np.ndarray:
    (save,) = (node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    (image,) = server.run(prompt)[save]["images"]
    return server.pixels(image).astype(np.float32) / 255.0


def test_the_files_are_the_templates_made_over():
    assert {path.stem for path in templates.OURS.glob("*.json")} == set(templates.PROMPTS)
    for name in templates.PROMPTS:
        written = (templates.OURS / f"{name}.json").read_text(encoding="utf-8")
        assert written == templates.text_of(name), (
            f"{name}: run demo/tiny_world/drawings/templates.py"
        )


@pytest.mark.server
@pytest.mark.parametrize("name", ["one_subject", "two_subjects", "attention_maps"])
def test_a_template_draws_the_right_answer(server, name):
    request = prompts.read_prompt(templates.PROMPTS[name], CAST)
    picture = _drawn(server, _prompt(server, name))
    found = prompts.psnr(picture, request.right, request.mask)
    print(f"{name}: {found:.1f} dB on the subject")  # noqa: T201  (pytest -s)
    assert found > LEAST_PSNR


@pytest.mark.server
def test_a_saved_subject_draws_the_right_answer(server):
    server.run(_prompt(server, "save_subject"))
    request = prompts.read_prompt(templates.PROMPTS["reuse_subject"], CAST)
    picture = _drawn(server, _prompt(server, "reuse_subject"))
    assert prompts.psnr(picture, request.right, request.mask) > LEAST_PSNR


@pytest.mark.server
def test_the_gallery_offers_them(server):
    offered = server.get("/workflow_templates")
    assert set(offered["tiny_world"]) == set(templates.PROMPTS)
