"""The pack on a running server: what it offers, the examples as prompts, errors as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graph_to_api import api_prompt
from serving import ROOT, client_module
from stand_ins import ENCODER_NAME, two_subjects, with_tiny_models

pytestmark = pytest.mark.server

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))

# Ids, inputs and their types: public, in other people's workflows. They never change.
PUBLIC = {
    "NestedAttention_LoadEncoder": (
        {"encoder_name": "COMBO"}, {}, ["NESTED_ATTENTION_ENCODER"],
    ),
    "NestedAttention_EncodeSubject": (
        {"encoder": "NESTED_ATTENTION_ENCODER", "image": "IMAGE", "crop": "COMBO", "combine": "COMBO"},
        {"clip_vision": "CLIP_VISION", "mask": "MASK"},
        ["NESTED_ATTENTION_SUBJECT"],
    ),
    "NestedAttention_SaveSubject": (
        {"subject": "NESTED_ATTENTION_SUBJECT", "filename_prefix": "STRING"}, {}, [],
    ),
    "NestedAttention_LoadSubject": (
        {"subject_name": "COMBO", "encoder": "NESTED_ATTENTION_ENCODER"},
        {},
        ["NESTED_ATTENTION_SUBJECT"],
    ),
    "NestedAttention_BindSubject": (
        {
            "subject": "NESTED_ATTENTION_SUBJECT",
            "token": "STRING",
            "noun": "STRING",
            "strength": "FLOAT",
            "token_weight": "FLOAT",
            "start_percent": "FLOAT",
            "end_percent": "FLOAT",
        },
        {"mask": "MASK", "sites": "STRING"},
        ["NESTED_ATTENTION_BINDING"],
    ),
    "NestedAttention_Apply": (
        {"model": "MODEL", "clip": "CLIP", "bindings": "COMFY_AUTOGROW_V3"}, {}, ["MODEL", "CLIP"],
    ),
}  # fmt: skip


@pytest.mark.smoke
@pytest.mark.parametrize("node_id", PUBLIC)
def test_public_names_are_as_promised(server, node_id):
    required, optional, outputs = PUBLIC[node_id]
    info = server.get(f"/object_info/{node_id}")[node_id]
    found = {
        group: {
            name: "COMBO" if isinstance(kind, list) else kind for name, (kind, *_) in inputs.items()
        }
        for group, inputs in info["input"].items()
    }
    assert found.get("required", {}) == required
    assert found.get("optional", {}) == optional
    assert info["output"] == outputs
    assert info["category"] == "nested_attention"


def test_every_input_says_what_it_does(server):
    for node_id in PUBLIC:
        info = server.get(f"/object_info/{node_id}")[node_id]
        assert info["description"]
        for group in ("required", "optional"):
            for name, (kind, *options) in info["input"].get(group, {}).items():
                if kind != "COMFY_AUTOGROW_V3":
                    assert len(options[0]["tooltip"]) > 20, (node_id, name)


def test_the_server_offers_only_this_pack_and_the_demos(server):
    ours = {name for name in server.get("/object_info") if name.startswith("NestedAttention_")}
    assert ours == set(PUBLIC)


@pytest.mark.parametrize("node_id", PUBLIC)
def test_every_node_has_a_help_page(node_id):
    page = ROOT / "js" / "docs" / f"{node_id}.md"
    assert page.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_nodes_and_inputs_that_exist(server, example):
    node_info = server.get("/object_info")
    graph = json.loads(example.read_text(encoding="utf-8"))
    for entry in api_prompt(graph, node_info).values():
        inputs = node_info[entry["class_type"]]["input"]
        known = {name for group in inputs.values() for name in group}
        given = {name.partition(".")[0] for name in entry["inputs"]}
        assert given <= known
        assert set(inputs.get("required", {})) <= given
    assert example.with_suffix(".jpg").is_file()


def _run_example(server, name: str):
    graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = api_prompt(graph, server.get("/object_info"))
    return server.run(with_tiny_models(prompt))


def _pictures(outputs) -> list[str]:
    return [image["filename"] for output in outputs.values() for image in output.get("images", [])]


@pytest.mark.parametrize("name", ["one_subject", "two_subjects", "one_subject_with_controlnet"])
def test_examples_draw_a_picture(server, name):
    (picture,) = _pictures(_run_example(server, name))
    assert (server.base / "output" / picture).stat().st_size > 1000


@pytest.mark.smoke
def test_a_saved_subject_can_be_chosen_at_once_and_draws_the_same_picture(server):
    outputs = _run_example(server, "save_subject")
    assert any("anna_00001_.safetensors" in str(output) for output in outputs.values())
    offered = server.get("/object_info/NestedAttention_LoadSubject")["NestedAttention_LoadSubject"]
    assert "anna_00001_.safetensors" in json.dumps(offered)
    assert _pictures(_run_example(server, "reuse_subject"))


@pytest.mark.parametrize(
    "node, inputs, message",
    [
        ("anna binding", {"token": "  "}, "the token is empty"),
        ("rex binding", {"token": "<anna>"}, "bound twice"),
        ("anna binding", {"start_percent": 0.9, "end_percent": 0.1}, "is after end_percent"),
        ("anna binding", {"sites": "x9"}, "cannot read the term 'x9'"),
        ("anna binding", {"sites": "u77"}, "no such cross-attention layer"),
        ("checkpoint", {"family": "sd15"}, "attention sites"),
    ],
)
def test_a_mistake_is_explained_on_the_node(server, node, inputs, message):
    prompt = two_subjects()
    prompt[node]["inputs"].update(inputs)
    with pytest.raises(client_module.PromptError, match=message):
        server.run(prompt)


def test_a_replaced_encoder_file_is_read_again(server):
    prompt = two_subjects()
    server.run(prompt)
    folder = server.base / "models" / "nested_attention"
    good = (folder / ENCODER_NAME).read_bytes()
    try:
        Path(folder / ENCODER_NAME).write_bytes(b"not an encoder")
        with pytest.raises(client_module.PromptError, match=ENCODER_NAME):
            server.run(prompt)
    finally:
        Path(folder / ENCODER_NAME).write_bytes(good)
    assert _pictures(server.run(prompt))


def test_a_missing_binding_is_refused_before_anything_runs(server):
    prompt = two_subjects()
    for key in ("bindings.binding_0", "bindings.binding_1"):
        del prompt["apply"]["inputs"][key]
    with pytest.raises(client_module.PromptError, match="binding_0"):
        server.run(prompt)
