"""Messages that any page, log and terminal can show, whatever they quote."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core import errors
from nested_core.errors import CheckpointError, MissingFileError, NestedAttentionError, shown

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=50)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, NestedAttentionError)
    ],
)
def test_a_long_message_keeps_its_begin_and_its_remedy_and_counts_what_it_leaves_out(kind):
    keys = [f"some.key.{n}" for n in range(5000)]
    remedy = "Expected two of them. Report the keys."
    message = str(kind(f"face.safetensors: 5000 keys not explained: {', '.join(keys)}. {remedy}"))
    assert len(message) <= 2000
    begin, note, end = message.split(" ... ")
    assert begin.startswith("face.safetensors: 5000 keys not explained: some.key.0, some.key.1, ")
    assert end.endswith(f", some.key.4999. {remedy}")
    entries = begin.count(", ") + 1 + end.count(", ") + 1
    assert note.startswith(f"({5000 - entries:,} more entries, ")


def test_a_long_text_without_entries_is_cut_too():
    message = str(NestedAttentionError("x" * 100_000 + " remedy"))
    assert len(message) <= 2000
    assert " ... (98,107 characters left out) ... x" in message
    assert message.endswith("x remedy")


@pytest.mark.parametrize("length", [0, 1, 1999, 2000])
def test_a_message_that_fits_is_left_alone(length):
    assert str(NestedAttentionError("x" * length)) == "x" * length


@given(st.lists(st.tuples(ANY_TEXT, st.integers(1, 3000)), max_size=4))
def test_any_message_is_short_text_without_control_characters(parts):
    message = str(NestedAttentionError("".join(text * times for text, times in parts)))
    assert len(message) <= 2000
    assert message.encode("utf-8").decode("utf-8") == message
    assert all(letter.isprintable() or letter == "\n" or ord(letter) > 0x9F for letter in message)
    assert str(NestedAttentionError(message)) == message


def test_what_no_text_can_hold_is_escaped():
    name = "a\udcff\x1b[2J\x00b.safetensors"
    assert str(CheckpointError(f"{name}: cut off")) == (
        "a\\udcff\\x1b[2J\\x00b.safetensors: cut off"
    )


def test_an_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(CheckpointError("x, " * 5000)))
    assert isinstance(error, CheckpointError)
    assert len(str(error)) <= 2000


def test_a_missing_file_is_one_of_ours_and_of_pythons():
    error = MissingFileError("gone")
    assert isinstance(error, CheckpointError)
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "gone"


def test_a_quoted_value_is_one_short_line():
    assert shown("anna") == "anna"
    assert shown("x" * 1000, 10) == "xxxxxxxxxx... (1,000 characters)"
    assert shown("a\nb") == "a\\nb"
