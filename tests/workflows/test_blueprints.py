"""The blueprints: the server offers them, they agree with the nodes, and the page draws with them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from blueprint_graphs import APPLY, SEPARATION, SUBJECT, flat_graph, plain_graph
from graph_to_api import api_prompt
from serving import ROOT
from test_page import _wait_until, chips, page  # noqa: F401
from test_page import pytestmark as in_the_page
from tiny_graphs import Prompt

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
INSIDE, OUTSIDE = -10, -20  # the ids of a subgraph's own nodes for its inputs and outputs

_FILES = {"encoder_name": "COMBO", "clip_vision_name": "COMBO"}
_WORDS = {"token": "STRING", "noun": "STRING", "fidelity": "FLOAT"}
_PICTURES = {"image": "IMAGE", "mask": "MASK"}
_PAIR = ("first", "second")


def _of_both(inputs: dict[str, str]) -> dict[str, str]:
    return {f"{which}_{name}": kind for which in _PAIR for name, kind in inputs.items()}


# Names, sockets and widgets: public, in other people's workflows. They never change.
PUBLIC = {
    "Personalise": ({"model": "MODEL", "clip": "CLIP", **_PICTURES}, {**_WORDS, **_FILES}),
    "Two subjects": (
        {"model": "MODEL", "clip": "CLIP", **_of_both(_PICTURES)},
        {**_of_both(_WORDS), **_FILES},
    ),
}
each_blueprint = pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)


def _read(path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node that the user sees, and the definition of what is inside it."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (node,) = workflow["nodes"]
    (definition,) = workflow["definitions"]["subgraphs"]
    return node, definition


def _inner_graph(definition: dict[str, Any]) -> dict[str, Any]:
    """What is inside as a graph of its own; what comes from outside is not connected."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [[link[name] for name in names] for link in definition["links"]]
    outer = {link[0] for link in links if link[1] == INSIDE}
    nodes = json.loads(json.dumps(definition["nodes"]))
    for socket in (each for node in nodes for each in node["inputs"]):
        socket["link"] = None if socket["link"] in outer else socket["link"]
    return {"nodes": nodes, "links": links}


def test_the_blueprints_are_those_that_were_promised():
    assert {path.stem for path in BLUEPRINTS} == set(PUBLIC)


@each_blueprint
def test_a_blueprint_is_one_node_that_shows_what_was_promised(path):
    node, definition = _read(path)
    assert node["type"] == definition["id"]
    assert node["title"] == definition["name"] == path.stem
    sockets, widgets = PUBLIC[path.stem]
    for inputs in (node["inputs"], definition["inputs"]):
        assert {each["name"]: each["type"] for each in inputs} == {**sockets, **widgets}
        labels = {each["name"]: each.get("label", each["name"]) for each in inputs}
        assert labels == {
            name: name if name in _FILES else name.replace("_", " ") for name in labels
        }
    # Saved without values, so that a file that is installed is chosen, and not one that is named here.
    assert node["widgets_values"] == []
    assert {each["name"] for each in node["inputs"] if "widget" in each} == set(widgets)
    assert {each["name"] for each in node["inputs"] if each.get("shape") == 7} == {
        name for name, kind in sockets.items() if kind == "MASK"
    }
    for outputs in (node["outputs"], definition["outputs"]):
        assert [each["name"] for each in outputs] == ["MODEL", "CLIP"]


@each_blueprint
def test_every_link_of_a_blueprint_has_two_ends(path):
    _, definition = _read(path)
    nodes = {node["id"]: node for node in definition["nodes"]}
    links = {link["id"]: link for link in definition["links"]}
    assert len(links) == len(definition["links"])
    for key, link in links.items():
        if link["origin_id"] == INSIDE:
            origin = definition["inputs"][link["origin_slot"]]
            assert key in origin["linkIds"]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert key in origin["links"]
        if link["target_id"] == OUTSIDE:
            target = definition["outputs"][link["target_slot"]]
            assert target["linkIds"] == [key]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == key
        assert link["type"] == origin["type"] == target["type"]
    ends = [socket["link"] for node in nodes.values() for socket in node["inputs"]]
    ends += [key for slot in definition["inputs"] for key in slot["linkIds"]]
    ends += [
        key for node in nodes.values() for output in node["outputs"] for key in output["links"]
    ]
    assert set(ends) - {None} == set(links)
    state = definition["state"]
    assert (state["lastNodeId"], state["lastLinkId"]) == (max(nodes), max(links))


@pytest.mark.server
@pytest.mark.smoke
def test_the_server_offers_the_blueprints(server):
    offered = {
        key: entry
        for key, entry in server.get("/global_subgraphs").items()
        if entry["info"]["node_pack"] == "custom_nodes.comfyui-nested-attention"
    }
    assert {entry["name"] for entry in offered.values()} == set(PUBLIC)
    for key, entry in offered.items():
        file = ROOT / "subgraphs" / f"{entry['name']}.json"
        data = server.get(f"/global_subgraphs/{key}")["data"]
        assert data == file.read_text(encoding="utf-8")


@pytest.mark.server
@pytest.mark.smoke
@each_blueprint
def test_what_is_inside_agrees_with_the_nodes(server, path):
    node_info = server.get("/object_info")
    _, definition = _read(path)
    prompt = api_prompt(_inner_graph(definition), node_info)
    for node in definition["nodes"]:
        info = node_info[node["type"]]
        assert [each["type"] for each in node["outputs"]] == info["output"]
        known = {
            name: "COMBO" if isinstance(kind, list) else kind
            for group in ("required", "optional")
            for name, (kind, *_) in info["input"].get(group, {}).items()
        }
        for socket in node["inputs"]:
            name, _, member = socket["name"].partition(".")
            assert known[name] == ("COMFY_AUTOGROW_V3" if member else socket["type"])
        given = prompt[str(node["id"])]["inputs"]
        from_outside = {
            node["inputs"][link["target_slot"]]["name"]
            for link in definition["links"]
            if (link["origin_id"], link["target_id"]) == (INSIDE, node["id"])
        }
        assert {name.partition(".")[0] for name in given} <= set(known)
        assert from_outside == (set(known) if node["type"] == SUBJECT else {"model", "clip"})
    (apply,) = (each["inputs"] for each in prompt.values() if each["class_type"] == APPLY)
    subjects = [key for key, each in prompt.items() if each["class_type"] == SUBJECT]
    bound = {f"bindings.binding_{number}": [key, 0] for number, key in enumerate(subjects)}
    assert apply == {**bound, "separation": SEPARATION[path.stem]}
    tokens = [prompt[key]["inputs"]["token"] for key in subjects]
    assert tokens == ["<person>", "<person2>"][: len(subjects)]


# --- in the page


def _drawn(server, prompt: Prompt) -> np.ndarray:
    (image,) = server.run(prompt)["save"]["images"]
    return server.pixels(image)


def _search_and_drop(page, name: str) -> None:  # noqa: F811
    """As a user does it: the search for nodes, its first answer, a click on the canvas."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.execute_script("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    _wait_until(page, "return document.activeElement.getAttribute('role') === 'combobox'", 10)
    page.switch_to.active_element.send_keys(name)
    first = "document.querySelector('#results-list [role=option]')?.innerText.split('\\n')[0]"
    _wait_until(page, f"return {first} === {json.dumps(name)}", 10)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    dropped = "app.graph.nodes.filter((each) => each.subgraph)"
    _wait_until(page, f"return {dropped}.length === 1", 10)
    canvas = page.find_element("id", "graph-canvas")
    ActionChains(page).move_to_element(canvas).click().perform()
    _wait_until(page, f"return !{dropped}[0].flags.ghost", 10)


_WIRE = """
const [links, values] = arguments;
const node = app.graph.nodes.find((each) => each.subgraph);
const named = (id) => (id === 'blueprint' ? node : app.graph.nodes.find((each) => each.id === id));
for (const [from, output, to, input] of links) {
  const target = named(to);
  named(from).connect(output, target, target.inputs.findIndex((each) => each.name === input));
}
for (const [name, value] of Object.entries(values)) {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
}
"""


def _chips(parameter: str) -> str:
    """With what the address of the chip's photograph says."""
    return chips(f"new URL(each.querySelector('img').src).searchParams.get({parameter!r})")


def _wire(page, flat: Prompt, which: list[str]) -> None:  # noqa: F811
    """Puts the blueprint where the flat graph has its nodes; `which`: before the names of inputs."""
    links = [
        ["blueprint", value[1], key, name]
        for key, entry in flat.items()
        for name, value in entry["inputs"].items()
        if isinstance(value, list) and value[0] == "apply"
    ]
    links += [["checkpoint", 0, "blueprint", "model"], ["checkpoint", 1, "blueprint", "clip"]]
    values = {name: flat["subject 0"]["inputs"][name] for name in _FILES}
    for number, prefix in enumerate(which):
        inputs = flat[f"subject {number}"]["inputs"]
        links.append([inputs["image"][0], 0, "blueprint", f"{prefix}image"])
        values.update({f"{prefix}{name}": inputs[name] for name in _WORDS})
    page.execute_script(_WIRE, links, values)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize(
    "vue",
    [
        pytest.param(False, id="classic", marks=in_the_page),
        pytest.param(True, id="vue", marks=in_the_page),
    ],
)
def test_a_dropped_blueprint_draws_what_its_nodes_draw(server, page, name, vue):  # noqa: F811
    page.execute_async_script(
        "const [on, done] = arguments;"
        "app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on).then(() => done())",
        vue,
    )
    flat = flat_graph(name, seed=41 + vue)
    plain = plain_graph(flat)
    page.execute_async_script(
        "const [api, done] = arguments;"
        "Promise.resolve(app.loadApiJson(api, 'plain')).then(() => done())",
        plain,
    )
    page.get_log("browser")  # what the page said before
    _search_and_drop(page, name)
    _wire(page, flat, [""] if name == "Personalise" else ["first_", "second_"])

    photographs = {"<anna>": "anna.jpg", "<rex>": "rex.jpg"}
    said = [token for token in photographs if token in flat["positive"]["inputs"]["text"]]
    # A chip for each subject under the prompt, which says it, and under the negative one.
    expected = sorted([[token, lit, photographs[token]] for token in said for lit in (False, True)])
    shown = f"return JSON.stringify({_chips('filename')}.sort())"
    _wait_until(page, f"{shown} === {json.dumps(json.dumps(expected, separators=(',', ':')))}", 10)
    assert page.execute_script("return document.querySelector('.nested-attention-note')") is None

    page.execute_async_script("const done = arguments[0]; app.queuePrompt(0, 1).then(() => done())")
    saved = "app.nodeOutputs.save?.images?.[0]"  # of the graph before, until this one ran
    prefix = json.dumps(flat["save"]["inputs"]["filename_prefix"])
    _wait_until(page, f"return {saved}?.filename.startsWith({prefix})", 30)
    image = page.execute_script(f"return {saved}")
    picture = server.pixels(image)
    assert np.array_equal(picture, _drawn(server, flat))
    assert not np.array_equal(picture, _drawn(server, plain))
    # After the run a chip shows what the encoder saw.
    _wait_until(
        page, f"return {_chips('subfolder')}.every((each) => each[2] === 'nested_attention')", 10
    )
    # Not what the page failed to fetch, now or later: it asks for the models of its own first graph.
    said = [
        each
        for each in page.get_log("browser")
        if each["source"] not in ("network", "security")
        and "Content Security Policy" not in each["message"]
    ]
    assert [each for each in said if each["level"] == "SEVERE"] == []
