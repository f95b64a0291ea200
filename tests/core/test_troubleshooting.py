"""The troubleshooting page quotes messages of the source, and each is one that the source still says.

A quote stands in a line of its own that begins with "- `". In it, … stands for what changes from case
to case: in the source that is a placeholder of an f-string. All else must be equal, letter by letter.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CHANGING = "…"


def source_files() -> list[Path]:
    """What runs in ComfyUI and can speak there: all but training."""
    found = [*ROOT.glob("nodes/**/*.py"), *ROOT.glob("nested_core/**/*.py")]
    return [path for path in found if (ROOT / "nested_core" / "training") not in path.parents]


def texts_of(code: str) -> Iterator[str]:
    """Every text of some code as one piece, with … for each run of placeholders; no docstrings."""
    nodes = list(ast.walk(ast.parse(code)))
    # A text that is a statement is a docstring. Parts of an f-string come with the whole.
    apart = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            apart.update(map(id, node.values))
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield _joined(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in apart:
                yield node.value


def _joined(node: ast.JoinedStr) -> str:
    parts = [each.value if isinstance(each, ast.Constant) else CHANGING for each in node.values]
    return re.sub(f"{CHANGING}+", CHANGING, "".join(map(str, parts)))


def quotes_of(page: str) -> list[str]:
    """The messages that a page quotes, in their order."""
    lines = [line for line in page.splitlines() if line.startswith("- `")]
    assert all(re.fullmatch(r"- `[^`]+`", line) for line in lines), "more than a quote in its line"
    return [line[3:-1] for line in lines]


def not_said(quotes: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Quotes that are part of none of the texts."""
    texts = list(texts)
    return [quote for quote in quotes if not any(quote in text for text in texts)]


@pytest.fixture(scope="module")
def said():
    return [text for path in source_files() for text in texts_of(path.read_text(encoding="utf-8"))]


def test_every_quoted_message_is_one_of_the_source(said):
    assert not_said(quotes_of(PAGE), said) == []


def test_every_quote_has_enough_to_search_for():
    for quote in quotes_of(PAGE):
        assert sum(letter.isalpha() for letter in quote) >= 12, quote


def test_no_message_is_quoted_twice():
    quotes = quotes_of(PAGE)
    assert len(quotes) == len(set(quotes)) >= 30


def test_every_quote_is_followed_by_what_to_do():
    lines = PAGE.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("- `"):
            assert lines[number + 1 : number + 2] == [""], line
            assert re.match(r"  \S", lines[number + 2]), line


CODE = '''
def load(path, size):
    """Reads a file of 16 sites."""
    raise ValueError(
        f"{path}: has {size:,}{size} bytes, "
        "expected fewer. "
        f"{'Get'} it again."
    )
'''


@pytest.mark.parametrize(
    ("quote", "is_said"),
    [
        ("…: has … bytes, expected fewer. … it again.", True),
        ("bytes, expected fewer", True),
        ("has … bytes", True),
        ("has 7 bytes", False),  # a number that the source does not say
        ("bytes, expected less", False),  # the message was changed
        ("…: has bytes", False),  # a placeholder is left out
        ("has … expected fewer", False),  # … is no abbreviation
        ("Reads a file of 16 sites", False),  # a docstring, which nobody meets
    ],
)
def test_a_quote_is_said_letter_by_letter(quote, is_said):
    assert not_said([quote], texts_of(CODE)) == ([] if is_said else [quote])


def test_every_test_file_that_the_page_on_other_packs_names_is_there():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    assert named
    assert sorted(name for name in named if not (ROOT / "tests" / "comfy" / name).is_file()) == []


def test_a_quote_is_a_line_of_its_own():
    page = "# Page\n\n- `one … two`\n\n  Do this, `not that`.\n- plain\n"
    assert quotes_of(page) == ["one … two"]
    with pytest.raises(AssertionError, match="more than a quote"):
        quotes_of("- `one`: text")
