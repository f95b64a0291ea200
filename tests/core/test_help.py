"""The help pages of the nodes: one form, every name of the schema, and translations that follow.

ComfyUI's page asks for `docs/<node>/<language>.md`, then for `docs/<node>.md`; it does not ask for the
English page in between. So the languages that nobody has translated need a copy under that name.
Pictures are looked up from `docs/`, wherever the page itself lies.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from test_troubleshooting import not_said, source_files, texts_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "js" / "docs"
LANGUAGES = ["zh", "zh-TW", "ja", "ko", "fr", "es", "de", "ru", "pt-BR"]
# True: every page has it.
SECTIONS = {
    "Graph": True,
    "Inputs": True,
    "Outputs": True,
    "What it shows": False,
    "Good to know": False,
    "When it goes wrong": True,
}
MAX_LINES = 60
MAX_PICTURE_BYTES, MAX_PICTURES_BYTES = 25_000, 300_000
# Shorter lines can be the same in two languages.
MIN_PROSE_LETTERS = 25

BOLD = re.compile(r"\*\*(.+?)\*\*")
CODE_SPAN = re.compile(r"`([^`]+)`")
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
BLOCK = re.compile(r"^```\n.*?^```$", re.MULTILINE | re.DOTALL)


# --- what the schemas say, without ComfyUI


@cache
def trees() -> tuple[ast.Module, ...]:
    paths = sorted((ROOT / "nodes").glob("*.py"))
    return tuple(ast.parse(path.read_text(encoding="utf-8")) for path in paths)


@cache
def definitions() -> dict[str, ast.AST]:
    """Classes and functions of the nodes, methods among them, by their names."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {
        node.name: node for tree in trees() for node in ast.walk(tree) if isinstance(node, kinds)
    }


def calls_of(node: ast.AST, method: str) -> Iterator[ast.Call]:
    """Calls such as `io.Model.Input(...)`, also those in the pack's own functions that are called."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Call(func=ast.Attribute(attr=found) | ast.Name(id=found)) if found == method:
                yield child
            case ast.Call(func=ast.Name(id=function)) if function in definitions():
                yield from calls_of(definitions()[function], method)
            case _:
                yield from calls_of(child, method)


def input_names(call: ast.Call) -> Iterator[str]:
    prefixes = [
        keyword.value.value
        for child in ast.walk(call)
        if isinstance(child, ast.Call)
        for keyword in child.keywords
        if keyword.arg == "prefix"
    ]
    yield from (f"{prefix}0" for prefix in prefixes)
    if not prefixes:
        yield ast.literal_eval(call.args[0])


def output_name(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "display_name":
            return ast.literal_eval(keyword.value)
    # ComfyUI's own types are shown by the type's name: `io.Model.Output()` is MODEL.
    return call.func.value.attr.upper()


@cache
def schemas() -> dict[str, tuple[list[str], list[str]]]:
    """Each registered node's id, with the names of its inputs and outputs."""
    registered = definitions()["get_node_list"]
    (names,) = (node.value for node in ast.walk(registered) if isinstance(node, ast.Return))
    found = {}
    for name in names.elts:
        (schema,) = calls_of(definitions()[name.id], "NodeSchema")
        parts = {keyword.arg: keyword.value for keyword in schema.keywords}
        inputs = [each for call in calls_of(parts["inputs"], "Input") for each in input_names(call)]
        outputs = [output_name(call) for call in calls_of(parts["outputs"], "Output")]
        found[ast.literal_eval(parts["node_id"])] = (inputs, outputs)
    return found


NODES = list(schemas())
TRANSLATED = [
    pytest.param(node, language, id=f"{node}-{language}")
    for node in NODES
    for language in LANGUAGES
]


# --- what a page holds


def read(node: str, language: str = "en") -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def prose(page: str) -> str:
    return BLOCK.sub("", page)


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ .*$", prose(page), re.MULTILINE)


def section(page: str, title: str) -> str:
    return prose(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def form(page: str) -> dict[str, object]:
    """What stays the same in every language."""
    text = prose(page)
    return {
        "headings": [heading.split(" ")[0] for heading in headings(page)],
        "list items": [len(indent) for indent in re.findall(r"^( *)- ", text, re.MULTILINE)],
        "pictures": [path for _, path in PICTURE.findall(text)],
        "code blocks": len(BLOCK.findall(page)),
        "names": BOLD.findall(text),
        "what is typed or quoted": set(CODE_SPAN.findall(text)),
    }


def test_the_schemas_are_read():
    assert len(NODES) > 5
    inputs, outputs = schemas()["NestedAttention_Apply"]
    assert inputs == ["model", "clip", "binding_0", "separation"]
    assert outputs == ["MODEL", "CLIP"]
    assert {"token", "noun", "fidelity"} <= set(schemas()["NestedAttention_BindSubject"][0])


def test_there_are_pages_of_nodes_only():
    assert {path.name for path in DOCS.iterdir()} == {
        "pictures",
        *NODES,
        *(f"{node}.md" for node in NODES),
    }
    known = {f"{language}.md" for language in ("en", *LANGUAGES)}
    strange = [path for node in NODES for path in (DOCS / node).iterdir() if path.name not in known]
    assert not strange


@pytest.mark.parametrize("node", NODES)
def test_a_page_has_the_form_of_all_pages(node):
    page = read(node)
    title, *sections = headings(page)
    assert title.startswith("# ")
    found = [each.removeprefix("## ") for each in sections]
    assert found == [each for each, always in SECTIONS.items() if always or each in found]
    assert len(page.splitlines()) <= MAX_LINES
    before = page.split("\n## ")[0]
    assert len(PICTURE.findall(before)) == len(PICTURE.findall(page)) == 1
    assert len(BLOCK.findall(page)) == 1
    assert "\n```\n" in page.split("\n## Graph\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("node", NODES)
def test_a_page_names_every_input_and_output(node):
    inputs, outputs = schemas()[node]
    assert not set(inputs) - set(BOLD.findall(section(read(node), "Inputs")))
    assert BOLD.findall(section(read(node), "Outputs")) == outputs
    # Of a socket that grows, the page gives the first two.
    named_inputs = {
        re.sub(r"_1$", "_0", name) for name in BOLD.findall(section(read(node), "Inputs"))
    }
    assert named_inputs == set(inputs)


@pytest.mark.parametrize("node", NODES)
def test_the_messages_on_a_page_are_said(node):
    items = re.findall(r"^- (`.*)$", section(read(node), "When it goes wrong"), re.MULTILINE)
    quotes = [quote for item in items for quote in CODE_SPAN.findall(item.split(":")[0])]
    said = [text for path in source_files() for text in texts_of(path.read_text(encoding="utf-8"))]
    assert not not_said(quotes, said)


def test_the_pictures_are_there_are_small_and_each_is_shown():
    shown = [picture for node in NODES for picture in PICTURE.findall(prose(read(node)))]
    assert all(text.strip() and '"' not in text for text, _ in shown)
    sizes = {path: (DOCS / path).stat().st_size for _, path in shown}
    assert max(sizes.values()) < MAX_PICTURE_BYTES
    assert sum(sizes.values()) < MAX_PICTURES_BYTES
    assert {f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir()} == set(sizes)


@pytest.mark.parametrize("node", NODES)
def test_a_language_without_a_page_gets_the_english_one(node):
    assert (DOCS / f"{node}.md").read_text(encoding="utf-8") == read(node)


@pytest.mark.parametrize(("node", "language"), TRANSLATED)
def test_a_translation_follows_the_english_page(node, language):
    assert form(read(node, language)) == form(read(node))


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
@pytest.mark.parametrize(("node", "entry"), [("Apply", "compare"), ("ShowMaps", "showMaps")])
def test_a_menu_entry_is_called_as_in_the_menu(node, entry, language):
    text = (ROOT / "locales" / language / "main.json").read_text(encoding="utf-8")
    assert f"*{json.loads(text)['nestedAttention'][entry]}*" in read(
        f"NestedAttention_{node}", language
    )


@pytest.mark.parametrize(("node", "language"), TRANSLATED)
def test_a_translation_is_translated(node, language):
    def lines(page: str) -> set[str]:
        bare = CODE_SPAN.sub("", PICTURE.sub(r"\1", prose(page)))
        return {
            line for line in bare.splitlines() if sum(map(str.isalpha, line)) > MIN_PROSE_LETTERS
        }

    assert not lines(read(node, language)) & lines(read(node))
