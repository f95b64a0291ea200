"""What the page's script shows and offers before a run, in a real browser, in both renderings."""

from __future__ import annotations

import json
import time

import pytest
from serving import ROOT
from test_page import _OPEN, _wait_until, chips, page, pytestmark  # noqa: F401
from tiny_graphs import two_subjects

_CHIPS = chips()
_NOTES = "[...document.querySelectorAll('.nested-attention-note')].map((each) => each.textContent)"


@pytest.fixture(params=[False, True], ids=["classic", "vue"], autouse=True)
def rendering(page, request):  # noqa: F811
    page.execute_async_script(
        "const [on, done] = arguments;"
        "app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on).then(() => done())",
        request.param,
    )
    return request.param


def _open(page, name, change=lambda nodes: None):  # noqa: F811
    graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    change(graph["nodes"])
    result = page.execute_async_script(_OPEN, graph, name)
    assert "error" not in result, result
    return graph


def _prompts(nodes):
    return [each for each in nodes if each["type"] == "CLIPTextEncode"]


def test_a_prompt_shows_who_is_bound_and_who_is_said(page):  # noqa: F811
    def leave_one_out(nodes):
        (said, *_) = [each for each in _prompts(nodes) if "<" in each["widgets_values"][0]]
        said["widgets_values"] = ["a photo of <anna> and <Ann>"]

    _open(page, "two_subjects", leave_one_out)
    _wait_until(page, f"return {_CHIPS}.length === 4")
    chips = page.execute_script(f"return {_CHIPS}")
    assert sorted(chips) == [
        ["<anna>", False],
        ["<anna>", True],
        ["<rex>", False],
        ["<rex>", False],
    ]
    notes = page.execute_script(f"return {_NOTES}")
    assert "<Ann> is not bound to a subject." in notes
    assert "No connected prompt says <rex>." in notes


_SAVED = "JSON.parse(JSON.stringify(app.graph.serialize()))"


def test_the_saved_workflow_is_the_plain_one(page):  # noqa: F811
    # A page that nobody looks at gets no rows.
    page.execute_script(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true})"
    )
    _open(page, "two_subjects")
    assert page.execute_script(f"return {_CHIPS}.length") == 0
    plain = page.execute_script(f"return {_SAVED}")
    page.execute_script("delete document.hidden")
    _wait_until(page, f"return {_CHIPS}.length > 0")
    saved = page.execute_script(f"return {_SAVED}")
    for each in (*plain["nodes"], *saved["nodes"]):
        del each["size"]  # a node grows to hold its row
    assert saved == plain


def test_typing_an_angle_bracket_offers_the_tokens_and_enter_writes_one(page):  # noqa: F811
    from selenium.webdriver.common.keys import Keys

    _open(page, "two_subjects")
    _wait_until(page, f"return {_CHIPS}.length > 0")
    page.execute_script(
        "const node = app.graph._nodes.find((each) => each.widgets?.some((one) => one.name === 'text'"
        " && one.value.includes('<anna>'))); app.canvas.ds.scale = 1; app.canvas.centerOnNode(node);"
        "app.canvas.setDirty(true, true)"
    )
    time.sleep(1)
    field = page.execute_script(
        "return [...document.querySelectorAll('textarea')].find((each) => each.value.includes('<anna>'))"
    )
    page.execute_script("arguments[0].focus(); arguments[0].setSelectionRange(1e4, 1e4)", field)
    field.send_keys(", <r")
    _wait_until(page, "return document.querySelectorAll('.nested-attention-list div').length === 1")
    field.send_keys(Keys.ENTER)
    text = field.get_property("value")
    assert text.endswith(", <rex>")
    prompt = page.execute_async_script(
        "app.graphToPrompt().then((each) => arguments[0](each.output))"
    )
    assert text in [each["inputs"].get("text") for each in prompt.values()]


_WITH_SUBJECT = """
const node = app.graph._nodes.find((each) => each.type === arguments[0]);
const items = app.collectNodeMenuItems ? app.collectNodeMenuItems(node) : [];
items.find((each) => each?.content === arguments[1]).callback();
"""


def test_bind_as_subject_wires_a_photograph_into_a_plain_graph(page):  # noqa: F811
    page.execute_async_script(
        "const done = arguments[0]; app.loadGraphData().then(() => done()).catch(() => done())"
    )
    before = page.execute_script(
        "const n = LiteGraph.createNode('LoadImage'); app.graph.add(n); return app.graph._nodes.length"
    )
    page.execute_script(_WITH_SUBJECT, "LoadImage", "Bind as subject")
    types = page.execute_script("return app.graph._nodes.map((each) => each.type)")
    assert len(types) == before + 2
    sources = page.execute_script(
        "return app.graph._nodes.flatMap((n) => (n.inputs ?? []).filter((i) => i.link != null)"
        ".map((i) => [n.type, i.type, app.graph.getNodeById(app.graph.links[i.link]?.origin_id"
        " ?? app.graph.getLink(i.link).origin_id).type]))"
    )
    apply, subject = "NestedAttention_Apply", "NestedAttention_Subject"
    for type_ in ("MODEL", "CLIP"):
        ways = [each for each in sources if each[1] == type_]
        (start,) = (origin for reader, _, origin in ways if reader == apply)
        assert "Loader" in start
        assert all(origin != start for reader, _, origin in ways if reader != apply)
        assert any(origin == apply for _, _, origin in ways)
    assert [apply, "NESTED_ATTENTION_BINDING", subject] in sources
    assert [subject, "IMAGE", "LoadImage"] in sources
    page.execute_script(_WITH_SUBJECT, apply, "Add subject")
    tokens = page.execute_script(
        "return app.graph._nodes.filter((each) => each.type === arguments[0])"
        ".map((each) => each.widgets.find((w) => w.name === 'token').value)",
        subject,
    )
    assert sorted(tokens) == ["<person2>", "<person>"]


def test_our_links_have_colours_of_their_own(page):  # noqa: F811
    _open(page, "two_subjects")
    colours = (
        "[...new Set(Object.keys(LGraphCanvas.link_type_colors).filter((each) =>"
        " each.startsWith('NESTED_ATTENTION_')).map((each) => LGraphCanvas.link_type_colors[each]))]"
    )
    _wait_until(page, f"return {colours}.filter(Boolean).length === 4")


def _of_ours(messages):
    return [each for each in messages if "nested" in each["message"].lower()]


def test_the_script_says_nothing_in_the_console(page):  # noqa: F811
    _open(page, "two_subjects")
    _wait_until(page, f"return {_CHIPS}.length > 0")
    assert not _of_ours(page.get_log("browser"))


_ROWS = (
    "(function count(graph) { return graph.nodes.flatMap((node) => [...(node.subgraph ? count(node.subgraph)"
    " : []), ...(node.widgets ?? []).filter((each) => each.name === 'nested_attention_row')"
    ".map((each) => each.element.textContent)]); })(app.rootGraph ?? app.graph)"
)


def test_a_prompt_inside_a_subgraph_knows_the_subjects_outside(page):  # noqa: F811
    _open(page, "two_subjects")
    page.execute_script(
        "const graph = app.graph; const prompt = graph.nodes.find((each) =>"
        " each.type === 'CLIPTextEncode' && each.widgets[0].value.includes('<anna>'));"
        "graph.convertToSubgraph(new Set([prompt]))"
    )
    assert page.execute_script("return app.graph.nodes.filter((each) => each.subgraph).length") == 1
    time.sleep(1)  # the page has looked again
    rows = page.execute_script(f"return {_ROWS}")
    assert rows.count("<anna><rex>") == 2  # the prompt inside, and the negative one outside
    assert not [each for each in rows if "No connected prompt" in each]


def test_undo_and_copies_leave_one_row_on_each_prompt(page):  # noqa: F811
    _open(page, "two_subjects")
    _wait_until(page, f"return {_ROWS}.length === 2")
    page.execute_script(
        "const prompt = app.graph.nodes.find((each) => each.type === 'CLIPTextEncode');"
        "app.canvas.copyToClipboard(new Set([prompt]));"
        "app.canvas.pasteFromClipboard({connectInputs: true})"
    )
    _wait_until(page, f"return {_ROWS}.length === 3")
    page.execute_async_script(
        "const done = arguments[0]; const tracker ="
        " app.extensionManager.workflow.activeWorkflow.changeTracker;"
        "tracker.checkState?.(); tracker.captureCanvasState?.();"
        "tracker.undo().then(() => done(), (error) => done(String(error)))"
    )
    _wait_until(
        page, "return app.graph.nodes.filter((e) => e.type === 'CLIPTextEncode').length === 2"
    )
    _wait_until(page, f"return {_ROWS}.length === 2")


_INPUTS = {
    False: "node.widgets.filter((each) => node.isWidgetVisible(each)).map((each) => each.name)",
    True: 'document.querySelector(`[data-node-id="${node.id}"]`).innerText.split(/\\s+/)',
}


def test_advanced_inputs_are_hidden_until_they_are_asked_for(page, rendering):  # noqa: F811
    _open(page, "two_subjects")
    find = (
        "const node = app.graph.nodes.find((each) => each.type === 'NestedAttention_BindSubject');"
    )
    page.execute_script(find + "app.canvas.ds.scale = 1; app.canvas.centerOnNode(node)")
    time.sleep(1)
    visible = page.execute_script(f"{find} return {_INPUTS[rendering]}")
    assert {"token", "noun", "fidelity"} <= set(visible)
    advanced = {"strength", "token_weight", "sites", "schedule"}
    assert not advanced & set(visible)
    page.execute_script(find + "node.showAdvanced = true")
    time.sleep(1)
    assert advanced <= set(page.execute_script(f"{find} return {_INPUTS[rendering]}"))


def test_one_click_compares_the_picture_with_and_without_subjects(server, page):  # noqa: F811
    prompt = two_subjects()
    prompt["latent"]["inputs"].update(width=64, height=64)
    page.execute_async_script(
        "const [api, done] = arguments; Promise.resolve(app.loadApiJson(api, 'two')).then(() => done())",
        prompt,
    )
    saved = sorted((server.base / "output").rglob("*.png"))
    page.execute_script(_WITH_SUBJECT, "NestedAttention_Apply", "Compare with and without subjects")
    shown = "[...document.querySelectorAll('.nested-attention-panel img')]"
    _wait_until(page, f"return {shown}.filter((each) => each.naturalWidth === 64).length === 2")
    with_subjects, without = page.execute_script(
        f"return {shown}.map((each) => {{ const c = document.createElement('canvas'); c.width = c.height"
        " = 64; c.getContext('2d').drawImage(each, 0, 0); return c.toDataURL(); })"
    )
    assert with_subjects != without
    assert sorted((server.base / "output").rglob("*.png")) == saved
    page.execute_script("document.querySelector('.nested-attention-panel button').click()")
    assert page.execute_script(f"return {shown}.length") == 0


def test_one_click_shows_where_the_subjects_act_in_a_picture(server, page):  # noqa: F811
    prompt = two_subjects()
    prompt["latent"]["inputs"].update(width=64, height=64)
    prompt["positive"]["inputs"]["text"] = "a photo of <anna> and <rex>"
    page.execute_async_script(
        "const [api, done] = arguments; Promise.resolve(app.loadApiJson(api, 'two')).then(() => done())",
        prompt,
    )
    saved = sorted((server.base / "output").rglob("*.png"))
    layers = "[...document.querySelectorAll('.nested-attention-panel .nested-attention-above')]"
    for _ in range(2):  # the second time ComfyUI has everything in its cache
        page.execute_script(_WITH_SUBJECT, "SaveImage", "Show where subjects act")
        _wait_until(page, f"return {layers}.length === 2")
        assert page.execute_script(f"return {layers}.map((each) => each.dataset.token)") == [
            "<anna>",
            "<rex>",
        ]
        page.execute_script("document.querySelector('.nested-attention-panel input').click()")
        assert page.execute_script(f"return {layers}.map((each) => each.hidden)") == [True, False]
        page.execute_script("document.querySelector('.nested-attention-panel button').click()")
    assert sorted((server.base / "output").rglob("*.png")) == saved
    assert not _of_ours(page.get_log("browser"))


def test_a_picture_without_subjects_offers_no_maps(page):  # noqa: F811
    page.execute_async_script(
        "const done = arguments[0]; app.loadGraphData().then(() => done()).catch(() => done())"
    )
    assert page.execute_script(
        "const node = app.graph.nodes.find((each) => each.type === 'SaveImage');"
        "return app.collectNodeMenuItems(node).every((each) => each?.content !== arguments[0])",
        "Show where subjects act",
    )
