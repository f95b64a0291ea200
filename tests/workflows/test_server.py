"""The pack on a running server: what it offers, the examples as prompts, errors as a user sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from graph_to_api import api_prompt
from PIL import Image
from serving import EXAMPLES, ROOT, client_module
from tiny_graphs import ENCODER_NAME, VISION_NAME, one_photograph, two_subjects, with_tiny_models

pytestmark = pytest.mark.server

DRAWING = (
    "quick_subject",
    "one_subject",
    "two_subjects",
    "one_subject_with_controlnet",
    "two_subjects_with_pose",
    "attention_maps",
)
SHOWN_FOLDER = "nested_attention"  # what our own nodes show, beside Preview Image's pictures

# Ids, inputs and their types: public, in other people's workflows. They never change.
PUBLIC = {
    "NestedAttention_Subject": (
        {
            "image": "IMAGE",
            "token": "STRING",
            "noun": "STRING",
            "fidelity": "FLOAT",
            "encoder_name": "COMBO",
            "clip_vision_name": "COMBO",
        },
        {"mask": "MASK"},
        ["NESTED_ATTENTION_BINDING", "NESTED_ATTENTION_SUBJECT"],
    ),
    "NestedAttention_LoadEncoder": (
        {"encoder_name": "COMBO"},
        {
            "hidden_state": "COMBO",
            "value_norm_mode": "COMBO",
            "value_norm_scale": "FLOAT",
            "noun": "STRING",
            "dim_head": "INT",
        },
        ["NESTED_ATTENTION_ENCODER"],
    ),
    "NestedAttention_EncodeSubject": (
        {"encoder": "NESTED_ATTENTION_ENCODER", "image": "IMAGE", "crop": "COMBO", "combine": "COMBO"},
        {"clip_vision": "CLIP_VISION", "mask": "MASK", "weights": "STRING"},
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
        {"mask": "MASK", "sites": "STRING", "fidelity": "FLOAT", "schedule": "COMBO"},
        ["NESTED_ATTENTION_BINDING"],
    ),
    "NestedAttention_Apply": (
        {"model": "MODEL", "clip": "CLIP", "bindings": "COMFY_AUTOGROW_V3"},
        {"separation": "FLOAT"},
        ["MODEL", "CLIP"],
    ),
    "NestedAttention_SubjectPerPicture": (
        {"subjects": "COMFY_AUTOGROW_V3"}, {}, ["NESTED_ATTENTION_SUBJECT"],
    ),
    "NestedAttention_CropMasks": (
        {"model": "MODEL", "region": "MASK"}, {"padding": "INT"}, ["MODEL"],
    ),
    "NestedAttention_RecordMaps": (
        {"model": "MODEL"},
        {"steps": "STRING", "sites": "STRING", "values": "BOOLEAN", "preview": "BOOLEAN"},
        ["MODEL", "NESTED_ATTENTION_RECORD"],
    ),
    "NestedAttention_ShowMaps": (
        {"record": "NESTED_ATTENTION_RECORD", "samples": "LATENT", "show": "COMBO", "picture": "INT"},
        {"image": "IMAGE"},
        ["IMAGE"],
    ),
    "NestedAttention_ExamplePhotograph": ({"photograph": "COMBO"}, {}, ["IMAGE", "MASK"]),
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


def _example_prompt(server, name: str):
    graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return with_tiny_models(api_prompt(graph, server.get("/object_info")))


def _nodes(prompt, class_type: str):
    return [each for each in prompt.values() if each["class_type"] == class_type]


def _run_example(server, name: str):
    return server.run(_example_prompt(server, name))


def _picture_of(server, outputs, kind: str) -> np.ndarray:
    """The one picture that a Save Image node keeps, or that a Preview Image node shows."""
    folder = {"SaveImage": "output", "PreviewImage": "temp"}[kind]
    found = [
        image
        for output in outputs.values()
        for image in output.get("images", [])
        if image["type"] == folder and image["subfolder"] != SHOWN_FOLDER
    ]
    (image,) = found
    return server.pixels(image)


def _pictures(outputs) -> list[str]:
    return [
        image["filename"]
        for output in outputs.values()
        for image in output.get("images", [])
        if image["type"] == "output"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "quick_subject",
        "one_subject",
        "two_subjects",
        "one_subject_with_controlnet",
        "two_subjects_with_pose",
    ],
)
def test_examples_draw_a_picture(server, name):
    (picture,) = _pictures(_run_example(server, name))
    assert (server.base / "output" / picture).stat().st_size > 1000


def test_the_maps_example_draws_the_same_picture_and_a_sheet_beside_it(server):
    plain = _picture_of(server, _run_example(server, "two_subjects"), "SaveImage")
    outputs = _run_example(server, "attention_maps")
    assert np.array_equal(_picture_of(server, outputs, "SaveImage"), plain)
    sheet = _picture_of(server, outputs, "PreviewImage")
    assert sheet.shape[1] > 1000
    # Four maps with names, numbers and scales; a sheet of nothing would be paper.
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize("show", ["overview", "resolutions", "steps", "values"])
def test_every_sheet_can_be_chosen(server, show):
    prompt = _example_prompt(server, "attention_maps")
    (node,) = _nodes(prompt, "NestedAttention_ShowMaps")
    node["inputs"]["show"] = show
    assert _picture_of(server, server.run(prompt), "PreviewImage").shape[1] > 300


@pytest.mark.parametrize("name", DRAWING)
def test_every_subject_and_control_of_an_example_acts_on_its_picture(server, name):
    prompt = _example_prompt(server, name)
    picture = _picture_of(server, server.run(prompt), "SaveImage")
    knobs = {
        "NestedAttention_Subject": "fidelity",
        "NestedAttention_BindSubject": "strength",
        "ControlNetApplyAdvanced": "strength",
    }
    acting = [(node, knob) for kind, knob in knobs.items() for node in _nodes(prompt, kind)]
    for node, knob in acting:
        strength = node["inputs"][knob]
        node["inputs"][knob] = 0.0
        without = _picture_of(server, server.run(prompt), "SaveImage")
        node["inputs"][knob] = strength
        assert not np.array_equal(without, picture), node["inputs"]
    assert len(acting) == 1 + ("two" in name or "maps" in name) + ("with" in name)


def test_the_maps_example_lays_its_sheet_over_the_picture(server):
    prompt = _example_prompt(server, "attention_maps")
    over = _picture_of(server, server.run(prompt), "PreviewImage")
    (node,) = _nodes(prompt, "NestedAttention_ShowMaps")
    del node["inputs"]["image"]
    assert not np.array_equal(_picture_of(server, server.run(prompt), "PreviewImage"), over)


def test_the_quick_example_adds_three_nodes_and_seven_links_to_text_to_image():
    text = (ROOT / "example_workflows" / "quick_subject.json").read_text(encoding="utf-8")
    graph = json.loads(text)
    added = {
        node["id"]: node["type"]
        for node in graph["nodes"]
        if node["type"].startswith("NestedAttention_")
    }
    assert sorted(added.values()) == [
        "NestedAttention_Apply",
        "NestedAttention_ExamplePhotograph",
        "NestedAttention_Subject",
    ]
    theirs = [link for link in graph["links"] if link[1] in added or link[3] in added]
    assert len(theirs) == 7


def test_the_readme_lists_the_examples_and_each_picture_is_of_one():
    names = {path.stem for path in EXAMPLES}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("| example | shows |")[1].split("\n\n")[0].splitlines()[2:]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(names)
    assert {path.stem for path in (ROOT / "example_workflows").glob("*.jpg")} == names


def test_examples_of_two_subjects_keep_them_apart(server):
    for name in ("two_subjects", "two_subjects_with_pose", "attention_maps"):
        prompt = _example_prompt(server, name)
        apart = _picture_of(server, server.run(prompt), "SaveImage")
        (node,) = _nodes(prompt, "NestedAttention_Apply")
        assert node["inputs"]["separation"] == 0.8
        node["inputs"]["separation"] = 0.0
        off = _picture_of(server, server.run(prompt), "SaveImage")
        assert not np.array_equal(off, apart), name


def test_each_picture_of_a_batch_has_its_subject(server):
    prompt = two_subjects()
    prompt["latent"]["inputs"]["batch_size"] = 2
    prompt["row"] = {
        "class_type": "NestedAttention_SubjectPerPicture",
        "inputs": {
            "subjects.subject_0": ["anna subject", 0],
            "subjects.subject_1": ["rex subject", 0],
        },
    }

    def batch() -> list[np.ndarray]:
        images = server.run(prompt)["save"]["images"]
        return [server.pixels(image) for image in images]

    alone = batch()
    prompt["anna binding"]["inputs"]["subject"] = ["row", 0]
    first, second = batch()
    assert np.array_equal(first, alone[0])
    assert not np.array_equal(second, alone[1])


@pytest.mark.smoke
def test_a_saved_subject_can_be_chosen_at_once_and_draws_the_same_picture(server):
    outputs = _run_example(server, "save_subject")
    assert any("anna_00001_.safetensors" in str(output) for output in outputs.values())
    offered = server.get("/object_info/NestedAttention_LoadSubject")["NestedAttention_LoadSubject"]
    assert "anna_00001_.safetensors" in json.dumps(offered)
    prompt = _example_prompt(server, "reuse_subject")
    picture = _picture_of(server, server.run(prompt), "SaveImage")
    (binding,) = _nodes(prompt, "NestedAttention_BindSubject")
    binding["inputs"]["strength"] = 0.0
    without = _picture_of(server, server.run(prompt), "SaveImage")
    assert not np.array_equal(without, picture)


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


@pytest.mark.smoke
def test_without_a_binding_model_and_clip_pass_through(server):
    """As the page queues it where every Bind Subject is bypassed or muted."""
    prompt = two_subjects()
    bound = _picture_of(server, server.run(prompt), "SaveImage")
    for key in ("bindings.binding_0", "bindings.binding_1"):
        del prompt["apply"]["inputs"][key]
    passed = _picture_of(server, server.run(prompt), "SaveImage")
    for node, slot, name in (
        ("sampler", 0, "model"),
        ("positive", 1, "clip"),
        ("negative", 1, "clip"),
    ):
        prompt[node]["inputs"][name] = ["checkpoint", slot]
    assert np.array_equal(_picture_of(server, server.run(prompt), "SaveImage"), passed)
    assert not np.array_equal(bound, passed)


def test_the_second_binding_stays_where_the_first_is_bypassed(server):
    prompt = two_subjects()
    prompt["positive"]["inputs"]["text"] = "a photo of <rex>"
    with_both = _picture_of(server, server.run(prompt), "SaveImage")
    del prompt["apply"]["inputs"]["bindings.binding_0"]
    assert np.array_equal(_picture_of(server, server.run(prompt), "SaveImage"), with_both)


class TestOnePhotograph:
    """Load, encode and bind by one node."""

    @pytest.mark.smoke
    def test_it_draws_and_says_what_became_of_it(self, server):
        prompt = one_photograph()
        picture = _picture_of(server, server.run(prompt), "SaveImage")
        prompt["sampler"]["inputs"]["seed"] = 2
        shown = server.texts_of(prompt)
        assert shown["subject"].startswith("<anna> acted: 1 picture")
        prompt["sampler"]["inputs"]["seed"] = 1
        prompt["subject"]["inputs"]["fidelity"] = 0.0
        assert not np.array_equal(_picture_of(server, server.run(prompt), "SaveImage"), picture)

    @pytest.mark.smoke
    @pytest.mark.parametrize(
        "inputs, message",
        [
            (
                {"clip_vision_name": "none"},
                "reads photographs through a CLIP vision model. Choose",
            ),
            (
                {"clip_vision_name": "gone"},
                "'gone' was not found. Put the .safetensors file into",
            ),
            (
                {"encoder_name": "gone"},
                "'gone' was not found. Put the .safetensors file into",
            ),
        ],
    )
    def test_a_missing_file_is_named_before_anything_runs(self, server, inputs, message):
        prompt = one_photograph()
        prompt["subject"]["inputs"].update(inputs)
        with pytest.raises(client_module.PromptError, match=re.escape(message)) as refused:
            server.run(prompt)
        answer = json.loads(str(refused.value))
        assert answer["error"]["type"] == "prompt_outputs_failed_validation"
        assert list(answer["node_errors"]) == ["subject"]

    def test_replaced_files_are_read_again(self, server):
        prompt = one_photograph()
        before = _picture_of(server, server.run(prompt), "SaveImage")
        path = server.base / "models" / "clip_vision" / VISION_NAME
        good = path.read_bytes()
        try:
            path.write_bytes(b"no image encoder")
            with pytest.raises(
                client_module.PromptError, match=f"'{VISION_NAME}' is no image encoder"
            ):
                server.run(prompt)
        finally:
            path.write_bytes(good)
        assert np.array_equal(_picture_of(server, server.run(prompt), "SaveImage"), before)


@pytest.mark.smoke
def test_nodes_show_their_subjects_after_a_run_and_again_where_they_are_cached(server):
    prompt = two_subjects()
    prompt["save"]["inputs"]["filename_prefix"] = "shown"
    prompt["sampler"]["inputs"]["seed"] = 21
    outputs = server.run(prompt)
    shown = {
        node: [server.pixels(image) for image in outputs[node]["images"]]
        for node in ("anna subject", "anna binding", "rex subject", "rex binding", "apply")
    }
    with Image.open(server.base / "input" / "anna.jpg") as photo:
        small = np.asarray(photo.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), float)
    (seen,) = shown["anna subject"]
    assert seen.shape == (32, 32, 3)
    assert np.abs(seen - small).max() <= 2  # Pillow and torch round differently
    (anna,), (rex,) = shown["anna binding"], shown["rex binding"]
    assert anna.shape == (128, 128, 3)
    assert not np.array_equal(anna, rex)
    assert [np.array_equal(*pair) for pair in zip(shown["apply"], (anna, rex), strict=True)] == [
        True,
        True,
    ]
    prompt["sampler"]["inputs"]["seed"] = 22  # all before it is cached
    again = server.run(prompt)
    # Releases that do not know of it leave the page what it has.
    resends = (
        "has_intermediate_output"
        in server.get("/object_info/NestedAttention_Apply")["NestedAttention_Apply"]
    )
    for node in shown if resends else ():
        assert again[node] == outputs[node]
    alone = server.run(one_photograph())
    assert alone["subject"]["images"] == outputs["anna subject"]["images"]


# What people type who look for this pack, and what they shall find with it, among others.
SEARCHES = {
    "Subject Apply": (
        "character", "consistent character", "likeness", "identity", "same person", "instantid",
        "pulid", "ipadapter", "ip adapter", "photomaker", "face id", "faceid", "face swap",
        "faceswap", "dreambooth", "lora without training", "textual inversion", "personalization",
        "personalisation", "personalize",
    ),
    "Subject EncodeSubject": ("photo", "photograph", "portrait", "face", "reference", "reference image"),
    "BindSubject": ("token", "trigger word"),
    "SaveSubject LoadSubject": ("character", "identity"),
    "SubjectPerPicture": ("comic", "batch", "video", "consistent character"),
    "RecordMaps ShowMaps": ("attention map", "heatmap", "visualize"),
    "CropMasks": ("detailer", "inpaint crop"),
}  # fmt: skip


@pytest.mark.parametrize("nodes", SEARCHES)
def test_what_people_type_finds_the_nodes(server, nodes):
    for name in nodes.split():
        node_id = f"NestedAttention_{name}"
        aliases = server.get(f"/object_info/{node_id}")[node_id]["search_aliases"]
        assert len(aliases) == len(set(aliases))
        assert set(SEARCHES[nodes]) <= set(aliases)


class TestWhatNodesShow:
    """Nothing that a user bound stays without effect in silence: its node says what became of it."""

    @staticmethod
    def prompt(seed: int, **texts: str):
        prompt = two_subjects()
        prompt["sampler"]["inputs"].update(seed=seed, steps=2)
        prompt["latent"]["inputs"].update(width=64, height=64)
        for node, text in texts.items():
            prompt[node]["inputs"]["text"] = text
        return prompt

    def test_a_prompt_of_the_checkpoints_own_clip_is_named(self, server):
        prompt = self.prompt(16)
        prompt["positive"]["inputs"]["clip"] = ["checkpoint", 1]
        shown = server.texts_of(prompt)
        assert "1 of 2 prompts of this sampling were not encoded" in shown["anna binding"]

    @pytest.mark.smoke
    def test_who_acted_and_who_is_in_no_prompt(self, server):
        for seed in (11, 12):  # anew at every sampling, also where all nodes before it are cached
            shown = server.texts_of(self.prompt(seed))
            assert re.fullmatch(
                r"<anna> acted: 1 picture, steps 1-2 of 2, [0-9.]+% of attention",
                shown["anna binding"],
            )
            assert shown["rex binding"].startswith("<rex> does not act: no prompt")

    def test_a_slip_is_shown_where_it_was_made_and_where_it_matters(self, server):
        shown = server.texts_of(self.prompt(13, positive="a photo of <Anna>"))
        assert "one says <Anna>" in shown["anna binding"]
        assert "Did you mean <anna>?" in shown["positive"]

    def test_a_model_without_the_subjects_is_named_on_the_sampler(self, server):
        prompt = self.prompt(14)
        prompt["sampler"]["inputs"]["model"] = ["checkpoint", 0]
        for seed in (14, 15):
            prompt["sampler"]["inputs"]["seed"] = seed
            shown = server.texts_of(prompt)
            assert "<anna>, but is sampled with a MODEL that does not know" in shown["sampler"]
