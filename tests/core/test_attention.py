"""The method's formulas: what replacing one token's value adds, whatever the knobs."""

from __future__ import annotations

import math

import pytest
import torch
from delta_reference import bound_token, by_value_table, plain, random_layer, region_and_star
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import random

from nested_core import attention
from nested_core.attention import ValueNorm


def _assert_equals_table(query, key, value, tokens, separation=None):
    delta = attention.replacement_delta(query, key, value, tokens, separation=separation)
    expected = by_value_table(query, key, value, tokens, separation)
    torch.testing.assert_close((plain(query, key, value) + delta), expected, rtol=1e-5, atol=1e-5)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    pixels=st.integers(1, 6),
    text_tokens=st.integers(2, 5),
    head_dim=st.integers(1, 5),
    mode=st.sampled_from(["per_head", "all_heads", "none"]),
    strengths=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    weights=st.tuples(st.floats(0.1, 10), st.just(1.0) | st.floats(0.1, 10)),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_delta_equals_the_value_table(
    batch, heads, pixels, text_tokens, head_dim, mode, strengths, weights, data
):
    query, key, value = random_layer(batch, heads, pixels, text_tokens, head_dim)
    tokens = []
    for index, (strength, weight) in enumerate(zip(strengths, weights, strict=True)):
        # Two tokens of one row never share a position.
        places = [p for p in range(text_tokens) if p % 2 == index]
        position = [data.draw(st.sampled_from(places)) for _ in range(batch)]
        masked = data.draw(st.booleans())
        region = torch.rand(batch, 1, pixels, 1, generator=torch.Generator().manual_seed(index))
        tokens.append(
            bound_token(
                random(batch, heads, pixels, head_dim, seed=10 + index),
                position,
                mode,
                strength=strength,
                token_weight=weight,
                region=region if masked else None,
            )
        )
    _assert_equals_table(query, key, value, tokens)


def test_nested_values_read_the_subject_token_that_the_query_asks_for():
    query = 50 * torch.eye(3)[None, None]
    value = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])[None, None]
    assert torch.allclose(attention.nested_values(query, query, value), value)


def test_nested_values_scale_by_the_square_root_of_the_head_width():
    query, key, value = random_layer(1, 1, 3, 4, 16)
    weights = (query @ key.mT / 4).softmax(-1)
    torch.testing.assert_close(attention.nested_values(query, key, value), weights @ value)


def test_heads_survive_a_round_trip():
    merged = random(2, 5, 12, seed=0)
    split = attention.split_heads(merged, 3)
    assert torch.equal(split[1, 2, 4], merged[1, 4, 8:12])
    assert torch.equal(attention.merge_heads(split), merged)


class TestValueNorm:
    TEXT = random(2, 3, 1, 4, seed=1)
    VALUES = random(2, 3, 7, 4, seed=2)

    def test_per_head_makes_every_head_as_long_as_its_text_value(self):
        normed = attention.normalise_values(self.VALUES, self.TEXT, ValueNorm("per_head", 2.0))
        torch.testing.assert_close(
            normed.norm(dim=-1), 2 * self.TEXT.norm(dim=-1).expand(-1, -1, 7)
        )

    def test_all_heads_keeps_the_heads_shares(self):
        normed = attention.normalise_values(self.VALUES, self.TEXT, ValueNorm("all_heads", 2.0))
        torch.testing.assert_close(
            normed.norm(dim=(1, 3)), 2 * self.TEXT.norm(dim=(1, 3)).expand(-1, 7)
        )
        ratio = normed / self.VALUES
        torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))

    def test_none_changes_nothing(self):
        assert (
            attention.normalise_values(self.VALUES, self.TEXT, ValueNorm("none", 2.0))
            is self.VALUES
        )

    @pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
    def test_zero_stays_zero(self, mode):
        zero = torch.zeros_like(self.VALUES)
        normed = attention.normalise_values(zero, self.TEXT, ValueNorm(mode, 2.0))
        assert torch.equal(normed, zero)


class TestExactlyNothing:
    @pytest.mark.parametrize(
        "settings",
        [
            {"strength": 0.0},
            {"region": torch.zeros(2, 1, 7, 1)},
            {"region": torch.zeros(2, 1, 7, 1), "token_weight": 5.0},
            {"presence": 0.0},
            {"presence": 0.0, "token_weight": 5.0, "region": torch.ones(2, 1, 7, 1)},
        ],
    )
    def test_without_strength_or_region(self, settings):
        query, key, value = random_layer()
        token = bound_token(random(2, 3, 7, 4, seed=9), [1, 4], **settings)
        delta = attention.replacement_delta(query, key, value, [token])
        assert torch.equal(delta, torch.zeros_like(query))

    def test_for_pixels_outside_the_region(self):
        query, key, value = random_layer()
        region = torch.zeros(2, 1, 7, 1)
        region[:, :, 3] = 1.0
        token = bound_token(random(2, 3, 7, 4, seed=9), [1, 4], region=region)
        delta = attention.replacement_delta(query, key, value, [token])
        assert torch.equal(delta[:, :, :3], torch.zeros(2, 3, 3, 4))
        assert bool((delta[:, :, 3] != 0).all())


def test_several_subjects_add():
    query, key, value = random_layer()
    first, second = (bound_token(random(2, 3, 7, 4, seed=i), [i, i]) for i in (1, 3))
    both = attention.replacement_delta(query, key, value, [first, second])
    alone = [attention.replacement_delta(query, key, value, [token]) for token in (first, second)]
    torch.testing.assert_close(both, sum(alone))


def test_a_table_over_the_budget_is_computed_in_pieces(monkeypatch):
    query, key, value = random_layer(pixels=29)
    token = bound_token(random(2, 3, 29, 4, seed=9), [1, 4], token_weight=3.0)
    whole = attention.replacement_delta(query, key, value, [token])
    monkeypatch.setattr(attention, "_MAX_TABLE_ELEMENTS", 2 * 3 * 5 * 4)
    pieces = attention.replacement_delta(query, key, value, [token])
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_inputs_are_computed_in_float32(dtype, tolerance):
    """Tolerance: the rounding of the inputs themselves."""
    query, key, value = (each.to(dtype) for each in random_layer())
    values = random(2, 3, 7, 4, seed=9).to(dtype)
    delta = attention.replacement_delta(query, key, value, [bound_token(values, [1, 4])])
    assert delta.dtype == torch.float32
    exact = attention.replacement_delta(
        *(each.float() for each in (query, key, value)), [bound_token(values.float(), [1, 4])]
    )
    torch.testing.assert_close(delta, exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("budget", [attention._MAX_TABLE_ELEMENTS, 2 * 3 * 5 * 4, 1])
def test_what_was_seen_is_the_attention_before_any_weight(monkeypatch, budget):
    query, key, value = random_layer(pixels=29)
    positions = [[1, 4], [0, 2], [3, 3]]
    tokens = [
        bound_token(random(2, 3, 29, 4, seed=9), each, token_weight=3.0, strength=0.0)
        for each in positions
    ]
    seen = torch.full((2, 3, 29), math.nan)
    monkeypatch.setattr(attention, "_MAX_TABLE_ELEMENTS", budget)
    attention.replacement_delta(query, key, value, tokens, seen)
    weights = (query.double() @ key.double().mT / 2.0).softmax(-1).mean(dim=1)
    for nth, position in enumerate(positions):
        for row, place in enumerate(position):
            torch.testing.assert_close(seen[row, nth].double(), weights[row, :, place])


def test_looking_on_changes_nothing():
    query, key, value = random_layer()
    token = bound_token(random(2, 3, 7, 4, seed=9), [1, 4], token_weight=3.0)
    found = attention.replacement_delta(query, key, value, [token], torch.empty(2, 1, 7))
    assert torch.equal(found, attention.replacement_delta(query, key, value, [token]))


def test_presence_is_a_region_of_that_much_everywhere():
    query, key, value = random_layer()
    settings = {"strength": 0.8, "token_weight": 3.0}
    values = random(2, 3, 7, 4, seed=9)
    present = bound_token(values, [1, 4], presence=0.4, **settings)
    _assert_equals_table(query, key, value, [present])
    everywhere = bound_token(values, [1, 4], region=torch.full((2, 1, 7, 1), 0.4), **settings)
    deltas = [
        attention.replacement_delta(query, key, value, [each]) for each in (present, everywhere)
    ]
    torch.testing.assert_close(*deltas)


@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_blended_values_are_the_column_of_the_value_table(mode):
    _, _, value = random_layer()
    region = torch.rand(2, 1, 7, 1, generator=torch.Generator().manual_seed(2))
    settings = {"strength": 1.4, "presence": 0.7, "region": region, "token_weight": 5.0}
    token = bound_token(random(2, 3, 7, 4, seed=9), [1, 4], mode, **settings)
    found = attention.blended_values(token, value.half())
    assert found.dtype == torch.float32
    exact = value.half().double()
    for row, position in enumerate((1, 4)):
        m, star = region_and_star(token, exact, row)
        text = exact[row, :, position][:, None]
        expected = text + 1.4 * m * (star - text)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-5)


def _everywhere(separation, batch=2):
    return torch.full((batch, 1, 7, 1), separation)


class TestSeparation:
    @staticmethod
    def _competitors(number=3, pixels=7, **settings):
        generator = torch.Generator().manual_seed(4)
        shares = torch.rand(number, 2, 1, pixels, 1, generator=generator)
        shares = shares / shares.sum(dim=0)
        positions = [[1, 4], [0, 2], [3, 3]]
        return [
            bound_token(
                random(2, 3, pixels, 4, seed=9 + n),
                positions[n],
                share=shares[n],
                **settings,
            )
            for n in range(number)
        ]

    @pytest.mark.parametrize("separation", [_everywhere(1.0), random(2, 1, 7, 1, seed=6).sigmoid()])
    @pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
    @pytest.mark.parametrize("budget", [attention._MAX_TABLE_ELEMENTS, 2 * 3 * 5 * 2])
    def test_every_knob_equals_the_value_table(self, monkeypatch, separation, mode, budget):
        monkeypatch.setattr(attention, "_MAX_TABLE_ELEMENTS", budget)
        knobs = [
            {"strength": 0.7, "token_weight": 3.0},
            {"presence": 0.6, "token_weight": 0.2},
            {"region": torch.rand(2, 1, 7, 1, generator=torch.Generator().manual_seed(5))},
        ]
        tokens = [
            bound_token(each.values, each.position.tolist(), mode, share=each.share, **settings)
            for each, settings in zip(self._competitors(), knobs, strict=True)
        ]
        _assert_equals_table(*random_layer(), tokens, separation)

    def test_owned_pixels_hear_their_owner_from_everybound_token(self):
        """The attention to both tokens, times the owner's value."""
        query, key, value = random_layer(batch=1, heads=1)
        share = torch.zeros(2, 1, 1, 7, 1)
        share[0, :, :, :3], share[1, :, :, 3:] = 1.0, 1.0
        tokens = [
            bound_token(random(1, 1, 7, 4, seed=20 + n), [2 * n], "none", share=share[n])
            for n in range(2)
        ]
        found = attention.replacement_delta(
            query, key, value, tokens, separation=_everywhere(1.0, batch=1)
        )
        weights = (query @ key.mT / 2.0).softmax(-1)[0, 0]
        owner = torch.cat([tokens[0].values[0, 0, :3], tokens[1].values[0, 0, 3:]])
        both = weights[:, [0, 2]]
        expected = both.sum(-1, keepdim=True) * owner - both @ value[0, 0, [0, 2]]
        torch.testing.assert_close(found[0, 0], expected)

    def test_none_is_exactly_no_shares(self):
        layer = random_layer()
        with_shares = self._competitors(token_weight=2.0, strength=0.9)
        without = [
            bound_token(
                each.values,
                each.position.tolist(),
                token_weight=each.token_weight,
                strength=each.strength,
            )
            for each in with_shares
        ]
        found = attention.replacement_delta(*layer, with_shares)
        assert torch.equal(found, attention.replacement_delta(*layer, without))

    def test_a_token_that_does_not_compete_keeps_its_own_value(self):
        query, key, value = random_layer()
        one, other, third = self._competitors()
        beside = bound_token(third.values, third.position.tolist(), strength=1.3, token_weight=2.0)
        _assert_equals_table(query, key, value, [one, beside, other], _everywhere(1.0))
        alone = attention.replacement_delta(
            query, key, value, [beside], separation=_everywhere(1.0)
        )
        assert torch.equal(alone, attention.replacement_delta(query, key, value, [beside]))

    def test_the_only_owner_of_everything_changes_nothing(self):
        layer = random_layer()
        values, everything = random(2, 3, 7, 4, seed=9), torch.ones(2, 1, 7, 1)
        owner = bound_token(values, [1, 4], share=everything, strength=0.7)
        found = attention.replacement_delta(*layer, [owner], separation=_everywhere(0.6))
        torch.testing.assert_close(found, attention.replacement_delta(*layer, [owner]))

    @pytest.mark.parametrize("settings", [{"strength": 0.0}, {"presence": 0.0}])
    def test_without_effect_nothing_is_exactly_nothing(self, settings):
        query, key, value = random_layer()
        found = attention.replacement_delta(
            query, key, value, self._competitors(**settings), separation=_everywhere(1.0)
        )
        assert torch.equal(found, torch.zeros_like(query))
