"""Fidelity: one knob that never turns back."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nested_core.fidelity import AS_TRAINED, balance_at

STEPS = [balance_at(n / 1000) for n in range(1001)]


def test_the_middle_is_exactly_as_trained():
    assert balance_at(AS_TRAINED) == (1.0, 1.0)


def test_the_left_end_is_the_noun_alone():
    assert balance_at(0.0) == (0.0, 1.0)


def test_turning_right_never_means_less_subject():
    for part in ("strength", "token_weight"):
        values = [getattr(each, part) for each in STEPS]
        assert values == sorted(values)


def test_every_turn_changes_something_and_nothing_jumps():
    for before, after in pairwise(STEPS):
        assert after != before
        assert after == pytest.approx(before, abs=0.01)


@pytest.mark.parametrize("fidelity", [0.1, 0.25, 0.45])
def test_on_the_left_the_strength_alone_falls_in_proportion(fidelity):
    assert balance_at(fidelity) == (pytest.approx(2.0 * fidelity), 1.0)


def test_the_right_end_is_as_far_as_was_measured():
    assert balance_at(1.0) == (1.125, 2.0)


def test_on_the_right_both_parts_rise():
    assert balance_at(0.75) == (1.0625, pytest.approx(2.0**0.5))
