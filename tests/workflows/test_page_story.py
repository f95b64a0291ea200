"""What a person does in the page, from a plain graph to a picture and back, in a real browser."""

from __future__ import annotations

import json
import time

import pytest
from serving import ROOT
from test_page import _OPEN, _wait_until, chips, page, pytestmark  # noqa: F401
from test_page_script import _WITH_SUBJECT, _of_ours, rendering  # noqa: F401
from test_tiny_templates import give_tiny_world
from tiny_graphs import ENCODER_NAME, two_subjects

TINY = ROOT / "demo" / "custom_nodes" / "tiny_world" / "example_workflows"
_CHIPS = chips("each.querySelector('img')?.naturalWidth > 0")
_COUNTS = "[app.graph.nodes.length, Object.values(app.graph.serialize().links).length]"
_LAYERS = "document.querySelectorAll('.nested-attention-panel .nested-attention-above').length"


def _plain_graph():
    """Text to picture as everybody has it, on a tiny model, without a subject."""
    names = ("checkpoint", "positive", "negative", "latent", "sampler", "decode", "save")
    prompt = {name: entry for name, entry in two_subjects().items() if name in names}
    for name in ("positive", "negative"):
        prompt[name]["inputs"]["clip"] = ["checkpoint", 1]
    prompt["positive"]["inputs"]["text"] = "a photo of"
    prompt["latent"]["inputs"].update(width=64, height=64)
    prompt["sampler"]["inputs"]["model"] = ["checkpoint", 0]
    return prompt


def _run(page):  # noqa: F811
    page.execute_script(
        "window.ended = null; for (const each of ['execution_success', 'execution_error'])"
        " app.api.addEventListener(each, ({detail}) => {"
        "  window.ended = detail?.exception_message ?? each; }, {once: true});"
        "app.queuePrompt(0, 1)"
    )
    _wait_until(page, "return window.ended !== null")
    assert page.execute_script("return window.ended") == "execution_success"


def test_from_a_plain_graph_to_a_picture_of_somebody(server, page):  # noqa: F811
    from selenium.webdriver.common.keys import Keys

    page.execute_async_script(
        "const [api, done] = arguments; Promise.resolve(app.loadApiJson(api, 'plain')).then(() => done())",
        _plain_graph(),
    )
    nodes, links = page.execute_script(f"return {_COUNTS}")

    # A photograph, bound from its menu.
    page.execute_script(
        "const node = LiteGraph.createNode('LoadImage'); app.graph.add(node);"
        "node.widgets.find((each) => each.name === 'image').value = 'anna.jpg'"
    )
    page.execute_script(_WITH_SUBJECT, "LoadImage", "Bind as subject")
    _wait_until(page, f"return {_CHIPS}.length === 2")
    page.execute_script(
        "app.graph.nodes.flatMap((node) => node.widgets ?? [])"
        ".find((each) => each.name === 'encoder_name').value = arguments[0]",
        ENCODER_NAME,
    )
    all_nodes, all_links = page.execute_script(f"return {_COUNTS}")
    assert (all_nodes - nodes, all_links - links) == (3, 4)

    # Its word, from the list under the cursor.
    field = page.execute_script(
        "const node = app.graph.nodes.find((e) => e.widgets?.some((one) => one.value === arguments[0]));"
        "app.canvas.ds.scale = 1; app.canvas.centerOnNode(node); app.canvas.setDirty(true, true);"
        "return [...document.querySelectorAll('textarea')].find((each) => each.value === arguments[0])",
        "a photo of",
    )
    time.sleep(1)
    page.execute_script("arguments[0].focus(); arguments[0].setSelectionRange(1e4, 1e4)", field)
    field.send_keys(" <")
    _wait_until(page, "return document.querySelectorAll('.nested-attention-list div').length === 1")
    field.send_keys(Keys.ENTER)
    assert field.get_property("value") == "a photo of <person>"
    _wait_until(page, f"return {_CHIPS}.some(([text, lit]) => lit && text === '<person>')")

    # The picture, the thumbnail, the sentence, the map.
    _run(page)
    _wait_until(page, f"return {_CHIPS}.every(([, , seen]) => seen)")
    shown = "app.nodeOutputs[app.graph.nodes.find((each) => each.type === arguments[0]).id]?.images?.length"
    for kind in ("NestedAttention_Subject", "NestedAttention_Apply", "SaveImage"):
        assert page.execute_script(f"return {shown}", kind) == 1
    _wait_until(page, "return document.body.textContent.includes('<person> acted: 1 picture')")
    page.execute_script(_WITH_SUBJECT, "SaveImage", "Show where subjects act")
    _wait_until(page, f"return {_LAYERS} === 1")
    page.execute_script("document.querySelector('.nested-attention-panel button').click()")

    # Saved, and opened again.
    saved = page.execute_script("return JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert "nested_attention" not in json.dumps(saved["nodes"])
    assert "error" not in page.execute_async_script(_OPEN, saved, "again")
    _wait_until(page, f"return {_CHIPS}.some(([text, lit]) => lit && text === '<person>')")

    # Undo takes the last step back and leaves the rest.
    page.execute_script(
        "app.graph.remove(app.graph.nodes.find((each) => each.type === 'NestedAttention_Subject'))"
    )
    _wait_until(page, f"return {_CHIPS}.length === 0")
    page.execute_async_script(
        "const done = arguments[0]; const tracker ="
        " app.extensionManager.workflow.activeWorkflow.changeTracker;"
        "tracker.checkState?.(); tracker.captureCanvasState?.();"
        "tracker.undo().then(() => done(), (error) => done(String(error)))"
    )
    _wait_until(page, f"return {_CHIPS}.length === 2")
    assert not _of_ours(page.get_log("browser"))


_OVERLAPS = """
const boxes = app.graph.nodes.map((node) =>
  [node.title, node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
return boxes.flatMap((a, index) => boxes.slice(index + 1)
  .filter((b) => a[1] < b[3] && b[1] < a[3] && a[2] < b[4] && b[2] < a[4])
  .map((b) => `${a[0]} / ${b[0]}`));
"""


@pytest.mark.parametrize("name", ["two_subjects", "attention_maps", "save_subject"])
def test_a_template_has_room_for_the_pictures_of_its_nodes(server, page, name):  # noqa: F811
    give_tiny_world(server)
    graph = json.loads((TINY / f"{name}.json").read_text(encoding="utf-8"))
    assert "error" not in page.execute_async_script(_OPEN, graph, name)
    assert page.execute_script(_OVERLAPS) == []
    _run(page)
    time.sleep(2)  # the nodes grow
    assert page.execute_script(_OVERLAPS) == []
