"""The templates of the transformers: ComfyUI's own for the family, and three nodes of ours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from graph_to_api import api_prompt
from serving import ROOT, load_file
from tiny_graphs import with_tiny_transformer

script = load_file("family_templates", ROOT / "devtools" / "family_templates.py")
each_family = pytest.mark.parametrize("family", script.TEMPLATES)


def graph_of(family: str) -> dict:
    path = ROOT / "example_workflows" / f"{family}_subject.json"
    return json.loads(path.read_text(encoding="utf-8"))


@each_family
def test_a_template_is_what_its_script_writes(family):
    path = ROOT / "example_workflows" / f"{family}_subject.json"
    assert path.read_text(encoding="utf-8") == script.text_of(family)


@each_family
def test_three_nodes_and_seven_links_are_ours(family):
    graph = graph_of(family)
    ours = {
        node["id"]: node["type"].removeprefix("NestedAttention_")
        for node in graph["nodes"]
        if node["type"].startswith("NestedAttention_")
    }
    assert sorted(ours.values()) == ["Apply", "ExamplePhotograph", "Subject"]
    theirs = [link for link in graph["links"] if link[1] in ours or link[3] in ours]
    # A model that knows no negative prompt has one text node less.
    num_texts = [node["type"] for node in graph["nodes"]].count("CLIPTextEncode")
    assert len(theirs) == 5 + num_texts


@each_family
def test_nodes_stand_apart(family):
    places = [(*node["pos"], *node["size"]) for node in graph_of(family)["nodes"]]
    for number, (x, y, width, height) in enumerate(places):
        for x2, y2, width2, height2 in places[:number]:
            title = 30  # stands above a node's position
            beside = x + width <= x2 or x2 + width2 <= x
            assert beside or y + height + title <= y2 or y2 + height2 + title <= y


@pytest.mark.server
@each_family
def test_the_subject_acts_on_the_picture(server, family):
    prompt = api_prompt(graph_of(family), server.get("/object_info"))
    prompt = with_tiny_transformer(prompt, family)
    (decode,) = (name for name, node in prompt.items() if node["class_type"] == "VAEDecode")
    prompt["look"] = {"class_type": "PreviewImage", "inputs": {"images": [decode, 0]}}
    (subject,) = (node for node in prompt.values() if node["class_type"].endswith("_Subject"))
    pictures = []
    for fidelity in (1.0, 0.0):
        subject["inputs"]["fidelity"] = fidelity
        shown = server.run(prompt)["look"]["images"]
        assert len(shown) == (2 if family == "wan" else 1)
        pictures.append([server.pixels(image) for image in shown])
    for with_subject, without in zip(*pictures, strict=True):
        assert with_subject.shape == (96, 128, 3)
        assert not np.array_equal(with_subject, without)
