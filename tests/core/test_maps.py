"""The record of a sampling: which steps, what is kept, and how it is summed up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from map_records import COARSE, FINE, record_of

from nested_core.errors import SiteError
from nested_core.families.unet_sites import AttentionSite
from nested_core.maps import (
    MapError,
    MapRecord,
    RecordPlan,
    SiteMap,
    ValuePicture,
    parse_steps,
)


def _map(attention, step=0, site=FINE, picture=0, token="<anna>", values=None, num_steps=4):
    attention = torch.as_tensor(attention, dtype=torch.float16)
    return SiteMap(step, num_steps, site, picture, token, attention, values)


def _values(number: float) -> ValuePicture:
    return ValuePicture(torch.full((1, 2, 3), number).half(), torch.zeros(3).half(), 1.0)


def _wanted(text: str, num_steps: int) -> list[int]:
    plan = RecordPlan.from_text(text)
    return [step for step in range(num_steps) if plan.wants_step(step, num_steps)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("  ", [0, 1, 2, 3, 4, 5]),
        ("0", [0]),
        ("1-3", [1, 2, 3]),
        ("0-1, 3,last", [0, 1, 3, 5]),
        ("4-last", [4, 5]),
        ("3 - 4", [3, 4]),
        ("last-last", [5]),
        ("3-99", [3, 4, 5]),
        ("6", []),
    ],
)
def test_steps_select(text, expected):
    assert _wanted(text, 6) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("x", "cannot read the term 'x'"),
        ("1,,2", "cannot read the term ''"),
        ("-1", "cannot read the term '-1'"),
        ("1.5", "cannot read the term '1.5'"),
        ("5-2", "5-2 in '5-2' runs backwards. Write 2-5"),
        ("last-3", "runs backwards. Write 3-last"),
    ],
)
def test_unreadable_steps_are_an_error(text, message):
    with pytest.raises(MapError, match=message):
        parse_steps(text)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4))
def test_steps_select_the_union_of_their_ranges(pairs):
    ranges = [(min(pair), max(pair)) for pair in pairs]
    expected = {step for first, last in ranges for step in range(first, last + 1)} & set(range(8))
    assert set(_wanted(",".join(f"{a}-{b}" for a, b in ranges), 8)) == expected


def test_a_step_outside_the_sampling_is_never_wanted():
    assert not RecordPlan().wants_step(6, 6)
    assert not RecordPlan().wants_step(-1, 6)


@pytest.mark.parametrize("text, step", [("", 5), ("0-3", 3), ("4,1", 4), ("last", 5), ("2-99", 5)])
def test_values_are_wanted_at_the_last_wanted_step_only(text, step):
    plan = RecordPlan.from_text(text)
    assert [each for each in range(6) if plan.wants_values(each, 6)] == [step]


def test_no_values_are_wanted_without_values():
    assert not any(RecordPlan(values=False).wants_values(step, 6) for step in range(6))


def test_the_plan_reads_sites_as_bindings_do():
    plan = RecordPlan.from_text(sites="m0")
    assert plan.sites.select([FINE, COARSE]) == {COARSE}
    with pytest.raises(SiteError, match="cannot read"):
        RecordPlan.from_text(sites="q")


def test_maps_of_the_same_place_are_averaged():
    record = record_of(_map([[0.0, 0.25]]), _map([[0.5, 0.25]]), _map([[1.0, 0.25]]))
    assert len(record.maps) == 1
    assert record.maps[0].attention.tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(
    "other", [{"step": 1}, {"site": COARSE}, {"picture": 1}, {"token": "<rex>"}]
)
def test_maps_of_different_places_stay_apart(other):
    record = record_of(_map([[0.0]]), _map([[1.0]], **other))
    assert [each.attention.item() for each in record.maps] == [0.0, 1.0]


def test_maps_of_one_site_on_several_grids_stay_apart():
    record = record_of(_map([[0.0]]), _map([[1.0, 1.0]]), _map([[0.5]]))
    assert [each.attention.tolist() for each in record.maps] == [[[0.25]], [[1.0, 1.0]]]


def test_pictures_are_in_their_order_and_tokens_in_that_of_their_appearance():
    record = record_of(
        _map([[0.0]], picture=2, token="<rex>"), _map([[0.0]], picture=0), _map([[0.0]], picture=1)
    )
    assert record.pictures == [0, 1, 2]
    assert record.tokens == ["<rex>", "<anna>"]


def test_one_picture_of_a_batch_is_summed_up_without_the_others():
    other = [
        _map([[0.9] * 4], step, site, picture=1, values=_values(9))
        for step in (0, 1)
        for site in (FINE, COARSE)
    ]
    record = record_of(_map([[0.5, 0.25]], values=_values(1)), *other, _map([[0.5]], token="<rex>"))
    alone = torch.tensor([[0.5, 0.25]])
    assert record.finest_grid(0) == (1, 2)
    assert torch.equal(record.mean(0, "<anna>"), alone)
    assert {step: each.tolist() for step, each in record.by_step(0, "<anna>").items()} == {
        0: alone.tolist()
    }
    assert list(record.by_resolution(0, "<anna>")) == [(1, 2)]
    assert [each.picture for each in record.values(0, "<anna>")] == [0]
    assert record.overlap(0, ["<anna>", "<rex>"])[1] == pytest.approx(0.75)


def test_the_latest_values_of_a_place_stay():
    record = record_of(
        _map([[0, 0]], values=_values(1)), _map([[0, 0]], values=_values(2)), _map([[0, 0]])
    )
    values = record.maps[0].values
    assert values is not None
    assert values.colours[0, 0, 0] == 2


def test_a_new_sampling_forgets_the_last():
    record = record_of(_map([[1.0]]), _map([[1.0]], step=1))
    record.begin(7)
    record.add(_map([[0.5]]))
    record.add(_map([[0.0]]))
    assert record.num_steps == 7
    assert [each.attention.item() for each in record.maps] == [0.25]


@pytest.mark.parametrize(
    "attention", [torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.float16, device="meta")]
)
def test_a_map_is_float16_on_the_cpu(attention):
    with pytest.raises(AssertionError):
        SiteMap(0, 4, FINE, 0, "<anna>", attention)


def test_an_unused_record_says_that_nothing_was_sampled():
    with pytest.raises(MapError, match="nothing was sampled with this node's MODEL"):
        MapRecord(RecordPlan()).require_maps()


def test_an_empty_record_says_what_was_recorded_and_what_to_check():
    record = record_of(plan=RecordPlan.from_text("30-40"))
    with pytest.raises(MapError, match=r"4 steps \(0 to 3\).*'30-40'.*token.*CLIP of Apply"):
        record.require_maps()
    record_of(_map([[1.0]])).require_maps()


def test_the_mean_counts_each_map_once_on_the_finest_grid():
    fine = _map([[0.4, 0.0], [0.0, 0.0]])
    later = _map([[0.8, 0.0], [0.0, 0.0]], step=1)
    coarse = _map([[0.3]], site=COARSE)
    mean = record_of(coarse, fine, later, _map([[9.0]], token="<rex>")).mean(0, "<anna>")
    expected = torch.tensor([[1.5, 0.3], [0.3, 0.3]]) / 3
    torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-4)  # maps are float16


def test_the_mean_of_equal_maps_is_that_map_to_the_last_digit():
    map_of = torch.linspace(0.001, 0.9, 8).half()[None]
    record = record_of(*(_map(map_of, step=step) for step in range(3)))
    assert torch.equal(record.mean(0, "<anna>"), map_of.float())


def test_maps_shrink_by_area_and_grow_smoothly():
    small = record_of(_map([[0.0, 1.0], [0.0, 0.5], [0.0, 0.5], [1.0, 0.0]]))
    assert small.mean(0, "<anna>", grid=(1, 2)).tolist() == [[0.25, 0.5]]
    large = record_of(_map([[0.0, 1.0]]))
    assert large.mean(0, "<anna>", grid=(1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]


def test_by_step_and_by_resolution_split_what_the_mean_joins():
    record = record_of(
        _map([[1.0, 1.0]], step=2),
        _map([[0.5, 0.5]], step=1),
        _map([[0.25]], step=1, site=COARSE),
    )
    by_step = record.by_step(0, "<anna>")
    assert {step: each.tolist() for step, each in by_step.items()} == {
        1: [[0.375, 0.375]],
        2: [[1.0, 1.0]],
    }
    assert list(by_step) == [1, 2]
    by_resolution = record.by_resolution(0, "<anna>")
    assert {grid: each.tolist() for grid, each in by_resolution.items()} == {
        (1, 2): [[0.75, 0.75]],
        (1, 1): [[0.25]],
    }
    assert list(by_resolution) == [(1, 2), (1, 1)]


@pytest.mark.parametrize(
    "maps, expected, share",
    [
        ([[0.5, 0.0], [0.0, 0.1]], [0.0, 0.0], 0.0),  # apart
        ([[0.5, 0.25], [0.1, 0.05]], [1.0, 0.5], 1.0),  # the same, at different strength
        ([[0.5, 0.25], [0.0, 0.1]], [0.0, 0.5], 0.25),
        ([[0.5, 0.0], [0.0, 0.1], [0.0, 0.0]], [0.0, 0.0], 0.0),
        ([[0.5, 0.0], [0.0, 0.1], [0.2, 0.2]], [1.0, 1.0], 1.0),
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], 0.0),
    ],
)
def test_overlap_is_the_second_largest_of_maps_at_their_peaks(maps, expected, share):
    tokens = [f"<{number}>" for number in range(len(maps))]
    record = record_of(*(_map([row], token=token) for row, token in zip(maps, tokens, strict=True)))
    second, found = record.overlap(0, tokens)
    # Maps are float16.
    torch.testing.assert_close(second, torch.tensor([expected]), rtol=1e-3, atol=1e-4)
    assert found == pytest.approx(share, abs=1e-3)


def test_values_come_in_network_order():
    record = record_of(
        _map([[0.0, 0.0]], values=_values(1)),
        _map([[0.0, 0.0]], site=COARSE, values=_values(2)),
        _map([[0.0, 0.0]], site=AttentionSite("input", 4, 0)),
    )
    assert [each.site for each in record.values(0, "<anna>")] == [COARSE, FINE]


def test_values_of_a_site_are_those_of_its_latest_step():
    record = record_of(
        _map([[0.0, 0.0]], step=1, values=_values(1)), _map([[0.0, 0.0]], step=2, values=_values(2))
    )
    assert [each.step for each in record.values(0, "<anna>")] == [2]
