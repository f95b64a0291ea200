from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core.bounded_json import parse_json


def parse(text: str | bytes):
    return parse_json(text, max_bytes=200, max_values=20, max_depth=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" + " " * 199 + "]", "201 bytes, at most 200 are read"),
        ("[" + "1," * 20 + "1]", "more than 20 values"),
        ("[" + "[]," * 10 + "[]]", "more than 20 values"),
        ("{" + '"":{},' * 10 + '"":{}}', "more than 20 values"),
        ('"' * 81, "more than 40 texts"),
        ("[[[[[]]]]]", "arrays or objects 5 deep, at most 4 are read"),
        ('{"a":{"a":{"a":{"a":{}}}}}', "arrays or objects 5 deep, at most 4 are read"),
        ("[[[[[", "arrays or objects 5 deep, at most 4 are read"),
        ("9" * 41, "a number of more than 40 characters"),
        ("[1." + "0" * 40 + "]", "a number of more than 40 characters"),
        ("1e" + "9" * 40, "a number of more than 40 characters"),
        ('{"a": 1, "a": 1}', "a name occurs twice"),
        ('{"a": 1, "\\u0061": 1}', "a name occurs twice"),
        ('{"a": [{"b": 1, "b": 1}]}', "a name occurs twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ('["\ud800"]', "surrogates not allowed"),
        (b'"\xff"', "can't decode byte 0xff"),
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[] []", "Extra data"),
    ],
)
def test_what_is_no_json_or_beyond_a_limit_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" + "1," * 18 + "1]", [1] * 19),
        ("[[[[]]]]", [[[[]]]]),
        ("9" * 40, 10**40 - 1),
        ('"\\ud83d\\ude80"', "🚀"),
        ('["[[[[[[", "{{{{{{,,,,,,,,,,,,,,,,,,,,,,,,,"]', ["[[[[[[", "{{{{{{" + "," * 25]),
        ('["\\"[[[[[[", "\\\\", "[[[[[["]', ['"[[[[[[', "\\", "[[[[[["]),
        ('["' + "9" * 100 + '"]', ["9" * 100]),
        (b'{"a":1e308}', {"a": 1e308}),
    ],
)
def test_text_is_no_structure_and_what_fits_is_read(text, value):
    assert parse(text) == value


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_any_json_within_the_limits_is_read_as_python_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text, max_bytes=10**6, max_values=1000, max_depth=100) == json.loads(text)
