"""The nodes in the user's language: `locales/<language>/nodeDefs.json`, key by key against the schemas.

ComfyUI's page looks up `nodeDefs.<node>.inputs.<input>.name` and the like in what the server gathers
from these files, and falls back to the schema where a key is missing. So a wrong key never fails in
the page: it is only English again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pack
import pytest

LANGUAGES = ["en", "zh", "zh-TW", "ja", "ko", "fr", "es", "de", "ru", "pt-BR"]
LOCALES = pack.ROOT / "locales"
FILE = "nodeDefs.json"

# The page hands most of these texts to a message compiler, where these characters have a meaning.
COMPILED = re.compile(r"[{}@|]")
WORD_OF_PROMPT = re.compile(r"<[^<>]*>")
# What a user has to type or find exactly so, whatever the language around it.
LITERAL = re.compile(
    r"models/\w+"  # folders
    r"|people/anna|%\w+%"  # a file's name in parts
    r"|(?<![\w.])\d+(?:\.\d+)?(?!\w|\.\d)"  # values
    r"|!d|\bm0\b|\bu3-5\b|(?<=10, )last"  # layers and steps
    r"|\b(?:early|late|ease|concatenate|average)\b|(?<=')values(?=')"  # what combos offer
    r"|\bCLIP(?: ViT-H/14)?|\bLoRA\b|\bNested Attention\b"
)


def page_key(name: str) -> str:
    """A dot would be a step deeper in the file, so the page writes an underscore."""
    return name.replace(".", "_")


def named(entry: Any, name: str) -> dict[str, str]:
    """What can be said of one input."""
    texts = {"name": entry.display_name or name}
    return texts | ({"tooltip": entry.tooltip} if entry.tooltip else {})


def of_inputs(inputs: list[Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """The texts of all inputs, sockets that grow on the page among them.

    A growing socket is always labelled with its own name. Its tooltip is in no other place: the page
    does not take it from the schema.
    """
    for entry in inputs:
        yield page_key(entry.id), named(entry, entry.id)
        template = getattr(entry, "template", None)
        if template is not None:
            for name in template.names:
                yield page_key(f"{entry.id}.{name}"), {"tooltip": template.input.tooltip}


def of_outputs(outputs: list[Any]) -> dict[str, dict[str, str]]:
    """An output without a name of its own is called by its type, which ComfyUI translates."""
    return {
        str(index): {"name": output.display_name}
        for index, output in enumerate(outputs)
        if output.display_name
    }


def of_node(schema: Any) -> dict[str, Any]:
    """All texts of one node."""
    texts: dict[str, Any] = {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": dict(of_inputs(schema.inputs)),
    }
    outputs = of_outputs(schema.outputs)
    return texts | ({"outputs": outputs} if outputs else {})


def of_schemas() -> dict[str, Any]:
    """The file as English has to have it."""
    nodes = (
        pack.host_nodes.NODE_CLASS_MAPPINGS[name]
        for name in sorted(pack.host_nodes.NODE_CLASS_MAPPINGS)
    )
    ours = [node for node in nodes if node.__module__.startswith(f"{pack.NAME}.")]
    schemas = [node.define_schema() for node in ours]
    return {page_key(schema.node_id): of_node(schema) for schema in schemas}


def flat(texts: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Each text by its whole key."""
    found: dict[str, Any] = {}
    for key, value in texts.items():
        name = f"{above}.{key}" if above else key
        found |= flat(value, name) if isinstance(value, dict) else {name: value}
    return found


def read(language: str) -> dict[str, Any]:
    path = LOCALES / language / FILE
    assert path.is_file(), f"locales/{language}/{FILE} is missing"
    return json.loads(path.read_text(encoding="utf-8"))


ENGLISH = flat(of_schemas())
NAMES = {key.split(".")[0]: text for key, text in ENGLISH.items() if key.endswith(".display_name")}
SAID = (".description", ".tooltip")
each_language = pytest.mark.parametrize("language", LANGUAGES)
each_translation = pytest.mark.parametrize("language", LANGUAGES[1:])


def nodes_named_in(text: str, names: dict[str, str]) -> set[str]:
    """The nodes that a text names; of names inside one another the longest counts."""
    found: set[str] = set()
    for node, name in sorted(names.items(), key=lambda item: -len(item[1])):
        if name in text:
            found.add(node)
            text = text.replace(name, "")
    return found


def test_no_other_languages_than_those_listed() -> None:
    assert {path.name for path in LOCALES.iterdir()} == set(LANGUAGES)


def test_all_nodes_were_looked_at() -> None:
    assert len(NAMES) == len(
        [
            name
            for name in pack.host_nodes.NODE_CLASS_MAPPINGS
            if name.startswith("NestedAttention_")
        ]
    )
    assert NAMES


def test_english_is_the_schemas_word_for_word() -> None:
    expected = json.dumps(of_schemas(), ensure_ascii=False, indent=2) + "\n"
    path = LOCALES / "en" / FILE
    written = path.read_text(encoding="utf-8") if path.is_file() else ""
    assert written == expected, f"locales/en/{FILE} should be:\n{expected}"


@each_language
def test_no_key_is_missing_and_none_is_left_over(language: str) -> None:
    keys = set(flat(read(language)))
    assert not set(ENGLISH) - keys, "missing"
    assert not keys - set(ENGLISH), "left over"


@each_language
def test_every_text_is_plain_text(language: str) -> None:
    for key, text in flat(read(language)).items():
        assert isinstance(text, str), key
        assert text.strip(), f"{key}: nothing said"
        assert text == text.strip(), f"{key}: space around it"
        assert not COMPILED.search(text), f"{key}: {text}"
        for word in WORD_OF_PROMPT.findall(ENGLISH.get(key, "")):
            text = text.replace(word, "")
        assert not re.search("[<>]", text), f"{key}: {text}"


@each_translation
def test_what_is_typed_or_looked_up_stays_as_it_is(language: str) -> None:
    for key, text in flat(read(language)).items():
        if key.endswith(SAID):
            literals = {*WORD_OF_PROMPT.findall(ENGLISH[key]), *LITERAL.findall(ENGLISH[key])}
            lost = [literal for literal in literals if literal not in text]
            assert not lost, f"{key}: {text}"


@each_translation
def test_nodes_are_called_by_their_translated_names(language: str) -> None:
    texts = flat(read(language))
    names = {
        key.split(".")[0]: text for key, text in texts.items() if key.endswith(".display_name")
    }
    assert len(set(names.values())) == len(names), "two nodes of one name"
    for key, text in texts.items():
        if key.endswith(SAID):
            expected = nodes_named_in(ENGLISH[key], NAMES)
            assert expected <= nodes_named_in(text, names), f"{key}: {text}"


@each_translation
def test_sentences_are_translated(language: str) -> None:
    """Not a name, which may be the same word: what is said of it."""
    said = {key: text for key, text in flat(read(language)).items() if key.endswith(SAID)}
    assert not [key for key, text in said.items() if text == ENGLISH[key]]


@each_translation
def test_the_same_sentence_is_translated_the_same_way(language: str) -> None:
    ways: dict[str, set[str]] = {}
    for key, text in flat(read(language)).items():
        if key.endswith(SAID):
            ways.setdefault(ENGLISH[key], set()).add(text)
    assert not {english: texts for english, texts in ways.items() if len(texts) > 1}


@each_language
def test_the_server_gathers_them(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page gets them: of a pack that lies in custom_nodes under any name."""
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "any name").mkdir()
    (tmp_path / "any name" / "locales").symlink_to(LOCALES, target_is_directory=True)
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set())
    )
    # The server gathers them once in its life.
    gathered = CustomNodeManager.build_translations.__wrapped__(CustomNodeManager())
    assert flat(gathered[language]["nodeDefs"]) == flat(read(language))


SCRIPT_TEXTS = pack.ROOT / "js" / "nested_attention" / "strings.js"
PLACEHOLDER = re.compile(r"\{\w+\}")


def script_english() -> dict[str, str]:
    """What the page's script says where a language says nothing."""
    return dict(re.findall(r'^  (\w+): "(.*)",$', SCRIPT_TEXTS.read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_script_speaks_every_language(language):
    texts = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))
    english = script_english()
    assert len(english) >= 8
    assert set(texts) == {"nestedAttention"}
    said = texts["nestedAttention"]
    assert list(said) == list(english)
    if language == "en":
        assert said == english
    for key, text in said.items():
        assert text.strip()
        assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(english[key])), key
        assert language == "en" or text != english[key], key
