"""The examples in the real page: they open, nothing is missing, and what is queued is what we meant."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request

import pytest
from graph_to_api import api_prompt
from serving import EXAMPLES, ROOT
from tiny_graphs import two_subjects, with_tiny_models

pytestmark = [
    pytest.mark.server,
    pytest.mark.browser,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's chromium and chromium-driver",
    ),
]

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1600,1000",
)
_READY = (
    "return !!(window.app && app.graph && window.LiteGraph "
    "&& LiteGraph.registered_node_types['NestedAttention_Apply'])"
)
_OPEN = """
const [graph, name, done] = arguments;
app.loadGraphData(graph, true, true, name)
  .then(() => app.graphToPrompt())
  .then((prompt) => done({prompt: prompt.output}))
  .catch((error) => done({error: String(error)}));
"""


def chips(*also: str) -> str:
    """An expression of the page: of every chip its text, whether it is lit, and so on for `each`."""
    said = ", ".join(("each.textContent", "each.classList.contains('lit')", *also))
    return f"[...document.querySelectorAll('.nested-attention-chip')].map((each) => [{said}])"


@pytest.fixture(scope="module")
def page(server):
    selenium = pytest.importorskip("selenium.webdriver")
    # The server keeps what the tests of another file have set.
    settings = json.dumps(
        {
            "Comfy.TutorialCompleted": True,
            "Comfy.Workflow.Persist": False,
            "Comfy.VueNodes.Enabled": False,
        }
    ).encode()
    request = urllib.request.Request(
        f"{server.url}/api/settings", settings, {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request).close()
    options = selenium.ChromeOptions()
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    service = selenium.ChromeService(shutil.which("chromedriver"))
    driver = selenium.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(60)
        driver.get(server.url)
        _wait_until(driver, _READY)
        yield driver
    finally:
        driver.quit()


def _wait_until(driver, script: str, instead: str = "null") -> None:
    """Wait until `script` is true; a failure tells the value of `instead`."""
    end = time.monotonic() + 90.0  # a busy machine is slow
    while not driver.execute_script(script):
        if time.monotonic() > end:
            found = driver.execute_script(f"return {instead}")
            pytest.fail(f"the page never became: {script}\nfound: {found}")
        time.sleep(0.2)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_and_queues_what_the_file_says(server, page, example):
    graph = json.loads(example.read_text(encoding="utf-8"))
    result = page.execute_async_script(_OPEN, graph, example.stem)
    assert "error" not in result, result
    found = {
        node: {"class_type": entry["class_type"], "inputs": entry["inputs"]}
        for node, entry in result["prompt"].items()
    }
    assert found == api_prompt(graph, server.get("/object_info"))


def test_apply_offers_another_binding_when_the_last_is_taken(page):
    graph = json.loads(
        (ROOT / "example_workflows" / "two_subjects.json").read_text(encoding="utf-8")
    )
    page.execute_async_script(_OPEN, graph, "two_subjects")
    sockets = page.execute_script(
        "return app.graph._nodes.find(n => n.type === 'NestedAttention_Apply')"
        ".inputs.map(i => [i.name, i.link !== null])"
    )
    assert [each for each in sockets if each[0].startswith("bindings.")] == [
        ["bindings.binding_0", True],
        ["bindings.binding_1", True],
        ["bindings.binding_2", False],
    ]


@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_apply_is_queued_without_the_bindings_that_are_off(server, page, mode):
    graph = json.loads(
        (ROOT / "example_workflows" / "quick_subject.json").read_text(encoding="utf-8")
    )
    (subject,) = (node for node in graph["nodes"] if node["type"] == "NestedAttention_Subject")
    subject["mode"] = mode
    prompt = page.execute_async_script(_OPEN, graph, "quick_subject")["prompt"]
    (apply,) = (each for each in prompt.values() if "_Apply" in each["class_type"])
    assert set(apply["inputs"]) == {"model", "clip", "separation"}
    assert server.run(with_tiny_models(prompt))


def test_a_workflow_from_before_an_input_was_added_opens_with_its_default(page):
    graph = json.loads(
        (ROOT / "example_workflows" / "one_subject.json").read_text(encoding="utf-8")
    )
    added = {"Apply": 1, "EncodeSubject": 1, "BindSubject": 2}
    for node in graph["nodes"]:
        count = added.get(node["type"].removeprefix("NestedAttention_"))
        if count is not None:
            del node["widgets_values"][-count:]
            widgets = [each for each in node["inputs"] if "widget" in each]
            for each in widgets[-count:]:
                node["inputs"].remove(each)
    prompt = page.execute_async_script(_OPEN, graph, "one_subject")["prompt"].values()
    found = {
        entry["class_type"].removeprefix("NestedAttention_"): entry["inputs"] for entry in prompt
    }
    assert found["Apply"]["separation"] == 0.0
    assert found["EncodeSubject"]["weights"] == ""
    assert (found["BindSubject"]["fidelity"], found["BindSubject"]["schedule"]) == (0.5, "constant")
    assert found["BindSubject"]["token"] == "<anna>"


@pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])
def test_what_became_of_a_subject_is_read_on_its_node(page, vue):
    """Tokens look like HTML's tags, and a page that takes them for tags shows nothing of them."""
    page.execute_async_script(
        "const [on, done] = arguments;"
        "app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on).then(() => done())",
        vue,
    )
    prompt = two_subjects()
    prompt["latent"]["inputs"].update(width=64, height=64)
    prompt["positive"]["inputs"]["text"] = "a photo of <anna> and <Rex>"
    prompt["sampler"]["inputs"]["seed"] = 31 + vue
    page.execute_async_script(
        "const [api, done] = arguments; Promise.resolve(app.loadApiJson(api, 'two'))"
        ".then(() => app.queuePrompt(0, 1)).then(done)",
        prompt,
    )
    # A page under load centres a new graph late, and hides the words of nodes outside of its window.
    look = "app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [0, 60]; app.canvas.setDirty(true, true);"
    text = "document.body.textContent"
    for expected in (
        "<anna> acted: 1 picture, step 1 of 1, ",
        "<rex> does not act: no prompt of this sampling says <rex>; one says <Rex>.",
        "the prompt says <Rex>, which no binding knows. Did you mean <rex>?",
    ):
        _wait_until(page, f"{look} return {text}.includes({json.dumps(expected)})", text)


# English, the page of all other languages, and a picture as the page looks it up.
@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("NestedAttention_BindSubject/en.md", b"# "),
        ("NestedAttention_BindSubject.md", b"# "),
        ("pictures/bind_subject.png", b"\x89PNG"),
    ],
)
def test_the_help_of_a_node_is_served(server, path, start):
    url = f"{server.url}/extensions/comfyui-nested-attention/docs/{path}"
    with urllib.request.urlopen(url) as response:
        assert response.read().startswith(start)


@pytest.fixture
def french(page):
    def speak(language):
        page.execute_async_script(
            "const [value, done] = arguments;"
            "app.extensionManager.setting.set('Comfy.Locale', value).then(() => done())",
            language,
        )
        page.refresh()
        _wait_until(page, _READY)

    speak("fr")
    yield page
    speak("en")


def test_the_page_speaks_the_users_language(french):
    text = json.loads((ROOT / "locales" / "fr" / "main.json").read_text(encoding="utf-8"))
    nodes = json.loads((ROOT / "locales" / "fr" / "nodeDefs.json").read_text(encoding="utf-8"))

    graph = json.loads(
        (ROOT / "example_workflows" / "two_subjects.json").read_text(encoding="utf-8")
    )
    prompt = next(each for each in graph["nodes"] if each["type"] == "CLIPTextEncode")
    prompt["widgets_values"] = ["a photo of <Bob>"]
    french.execute_async_script(_OPEN, graph, "two_subjects")
    expected = text["nestedAttention"]["unknownWord"].replace("{word}", "<Bob>")
    notes = (
        "[...document.querySelectorAll('.nested-attention-note')].map((each) => each.textContent)"
    )
    _wait_until(french, f"return {notes}.includes({json.dumps(expected)})")
    titles = french.execute_script(
        "return app.graph._nodes.map((each) => LiteGraph.createNode(each.type).title)"
    )
    assert nodes["NestedAttention_Apply"]["display_name"] in titles
