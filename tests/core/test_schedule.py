"""Schedules: their shapes, their ends, and moments found from noise levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core.schedule import SCHEDULES, percent_at, presence

percents = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    "schedule, at_start, at_quarter, at_middle, at_three_quarters, at_end",
    [
        ("constant", 1.0, 1.0, 1.0, 1.0, 1.0),
        ("early", 1.0, 27 / 32, 0.5, 5 / 32, 0.0),
        ("late", 0.0, 5 / 32, 0.5, 27 / 32, 1.0),
        ("ease", 0.0, 1.0, 1.0, 1.0, 0.0),
    ],
)
def test_a_schedule_has_its_shape_within_its_part(
    schedule, at_start, at_quarter, at_middle, at_three_quarters, at_end
):
    found = [presence(schedule, p, 0.2, 0.6) for p in (0.2, 0.3, 0.4, 0.5, 0.6)]
    expected = [at_start, at_quarter, at_middle, at_three_quarters, at_end]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_outside_its_part_a_subject_is_absent(schedule):
    assert presence(schedule, 0.19999, 0.2, 0.6) == 0.0
    assert presence(schedule, 0.60001, 0.2, 0.6) == 0.0


@given(*[percents] * 3)
def test_constant_is_exactly_one_in_its_part(one, other, another):
    start, percent, end = sorted((one, other, another))
    assert presence("constant", percent, start, end) == 1.0


@given(st.sampled_from(SCHEDULES), *[percents] * 3)
def test_presence_is_a_share_whatever_the_numbers(schedule, percent, start, end):
    assert 0.0 <= presence(schedule, percent, start, end) <= 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("moment", [0.0, 0.3, 1.0])
def test_a_part_without_length_is_one_moment_in_full(schedule, moment):
    assert presence(schedule, moment, moment, moment) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_presence_changes_without_a_jump(schedule):
    steps = [presence(schedule, n / 1000, 0.0, 1.0) for n in range(1001)]
    assert max(abs(b - a) for a, b in pairwise(steps)) < 0.01


def test_ease_enters_as_it_leaves_and_ramps_smoothly():
    for n in range(501):
        entering, leaving = (
            presence("ease", n / 1000, 0.0, 1.0),
            presence("ease", 1 - n / 1000, 0.0, 1.0),
        )
        assert entering == pytest.approx(leaving, abs=1e-12)
    assert presence("ease", 0.125, 0.0, 1.0) == pytest.approx(0.5)
    assert presence("ease", 0.0625, 0.0, 1.0) == pytest.approx(5 / 32)


def _flow(percent: float) -> float:
    """As ComfyUI's flow models: a bounded noise level, shifted towards noise."""
    return 6.0 * (1.0 - percent) / (1.0 + 5.0 * (1.0 - percent))


def _steps(percent: float) -> float:
    """As ComfyUI's discrete models: huge before the first step, 0 behind the last."""
    if percent <= 0.0:
        return 999999999.9
    if percent >= 1.0:
        return 0.0
    return 14.6 * (1.0 - percent) ** 2 + 0.029


@pytest.mark.parametrize("percent_to_sigma", [_flow, _steps])
@pytest.mark.parametrize("percent", [0.001, 0.2, 0.5, 0.999])
def test_a_noise_level_tells_its_percent(percent_to_sigma, percent):
    assert percent_at(percent_to_sigma(percent), percent_to_sigma) == pytest.approx(percent)


@pytest.mark.parametrize("percent_to_sigma", [_flow, _steps])
def test_noise_beyond_either_end_is_that_end(percent_to_sigma):
    assert percent_at(1e12, percent_to_sigma) == pytest.approx(0.0, abs=1e-9)
    assert percent_at(0.0, percent_to_sigma) == 1.0
    assert percent_at(-1.0, percent_to_sigma) == 1.0
