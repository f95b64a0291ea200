from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core.errors import SiteError
from nested_core.families.unet_sites import (
    AttentionSite,
    describe_sites,
    in_network_order,
    parse_sites,
)

_LETTERS = {"input": "d", "middle": "m", "output": "u"}

sites = st.builds(
    AttentionSite,
    st.sampled_from(["input", "middle", "output"]),
    st.integers(0, 11),
    st.integers(0, 9),
)
models = st.sets(sites, min_size=1, max_size=30)


def select(text: str, available: set[AttentionSite]) -> set[str]:
    return {site.text for site in parse_sites(text).select(available)}


SDXL = {
    AttentionSite(block, number, index)
    for block, numbers, depth in [
        ("input", (4, 5), 2),
        ("input", (7, 8), 10),
        ("middle", (0,), 10),
        ("output", (0, 1, 2), 10),
        ("output", (3, 4, 5), 2),
    ]
    for number in numbers
    for index in range(depth)
}


def test_short_and_file_forms_name_the_same_site():
    site = AttentionSite("output", 3, 1)
    assert site.text == "u3.1"
    assert site.path == "output.3.1"


@given(sites)
def test_a_site_is_read_back_from_its_path(site: AttentionSite):
    assert AttentionSite.from_path(site.path) == site


@pytest.mark.parametrize(
    "path", ["", "output", "output.3", "u3.1", "output.3.1.2", "output.-1.0", "output.a.0"]
)
def test_a_path_that_is_no_site_is_refused(path: str):
    with pytest.raises(SiteError, match=r"expected BLOCK.NUMBER.INDEX .* such as output\.0\.4"):
        AttentionSite.from_path(path)


def test_network_order_is_input_middle_output_each_by_number():
    texts = ["u10.0", "u9.1", "m0.0", "d5.0", "d4.1", "d4.0"]
    ordered = in_network_order(site for site in ALL if site.text in texts)
    assert [site.text for site in ordered] == ["d4.0", "d4.1", "d5.0", "m0.0", "u9.1", "u10.0"]


ALL = {
    AttentionSite(block, number, index)
    for block in _LETTERS
    for number in range(12)
    for index in range(2)
}


def test_a_listing_joins_neighbouring_indices():
    found = [AttentionSite("output", 0, index) for index in (0, 1, 2, 4)]
    assert describe_sites([AttentionSite("middle", 0, 0), *found]) == "m0.0 u0.0-2+4"
    assert describe_sites([]) == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 70),
        ("  ", 70),
        ("u", 36),
        ("d,m,u", 70),
        ("m0", 10),
        ("m0,u3-5", 16),
        ("u3.1", 1),
        ("u.1", 6),
        ("d7-8.0-4", 10),
        ("!d", 46),
        ("!d,!m", 36),
        ("u,!u0", 26),
        ("!u0, u", 26),
        ("m,m0.3", 10),
        ("u03", 2),
    ],
)
def test_selector_names_that_many_sites_of_sdxl(text: str, count: int):
    assert len(select(text, SDXL)) == count


def test_selectors_choose_block_number_and_index():
    assert select("u3.1", SDXL) == {"u3.1"}
    assert select("d4-5.0", SDXL) == {"d4.0", "d5.0"}
    assert select("u3-4,!u.0", SDXL) == {"u3.1", "u4.1"}


@pytest.mark.parametrize(
    "text",
    [*"x u3- u-3 3 u3.1.2 u3..1 u,,d u, !!u U u3.-1 u99999 u٣".split(), "d 4"],
)
def test_a_term_outside_the_grammar_is_refused_with_the_grammar(text: str):
    with pytest.raises(SiteError, match=r"cannot read the term '.*'\. Expected comma-separated"):
        parse_sites(text)


def test_a_range_that_runs_backwards_is_refused_with_the_right_order():
    with pytest.raises(SiteError, match=r"'u5-3' runs backwards\. Write 3-5"):
        parse_sites("u5-3")


@pytest.mark.parametrize("text", ["u9", "!u9", "u,u9", "m0.10", "u3-5.7"])
def test_a_term_that_names_no_site_lists_the_sites_there_are(text: str):
    with pytest.raises(SiteError, match=r"no such .* It has d4\.0-1 .* m0\.0-9 .*u5\.0-1"):
        select(text, SDXL)


@given(models)
def test_an_empty_selector_selects_every_site(model: set[AttentionSite]):
    assert parse_sites("").select(model) == model


@given(models, st.data())
def test_naming_sites_one_by_one_selects_exactly_those(
    model: set[AttentionSite], data: st.DataObject
):
    wanted = data.draw(st.sets(st.sampled_from(sorted(model)), min_size=1))
    assert parse_sites(",".join(site.text for site in wanted)).select(model) == wanted


@given(models, st.data())
def test_a_negated_term_selects_the_complement(model: set[AttentionSite], data: st.DataObject):
    site = data.draw(st.sampled_from(sorted(model)))
    for term in (site.text, site.text.split(".")[0], site.text[0]):
        selected = parse_sites(term).select(model)
        assert site in selected
        assert parse_sites(f"!{term}").select(model) == model - selected


@given(models, st.permutations(["d", "!m", "u"]))
def test_the_order_of_terms_does_not_matter(model: set[AttentionSite], terms: list[str]):
    present = {_LETTERS[site.block] for site in model}
    terms = [term for term in terms if term[-1] in present]
    expected = parse_sites(",".join(sorted(terms))).select(model)
    assert parse_sites(",".join(terms)).select(model) == expected


@given(models, st.integers(0, 11), st.integers(0, 11))
def test_a_range_selects_what_its_numbers_select(model: set[AttentionSite], first: int, last: int):
    first, last = min(first, last), max(first, last)
    expected = {s for s in model if s.block == "output" and first <= s.number <= last}
    if expected:
        assert parse_sites(f"u{first}-{last}").select(model) == expected
    else:
        with pytest.raises(SiteError):
            parse_sites(f"u{first}-{last}").select(model)


@given(st.text(alphabet="dmu!0123456789.-, x", max_size=30) | st.text(max_size=10))
def test_any_text_is_a_selector_or_a_site_error(text: str):
    with contextlib.suppress(SiteError):
        parse_sites(text)
