"""The method's formulas: what replacing one token's value adds, whatever the knobs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nested_core import attention
from nested_core.attention import BoundToken, ValueNorm


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(batch=2, heads=3, pixels=7, text_tokens=5, head_dim=4, seed=0):
    query = _random(batch, heads, pixels, head_dim, seed=seed)
    key, value = (_random(batch, heads, text_tokens, head_dim, seed=seed + i) for i in (1, 2))
    return query, key, value


def _by_value_table(query, key, value, tokens):
    """One value per pixel and text token, in float64: the paper's sentence, word for word."""
    query, key, value = (each.double() for each in (query, key, value))
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    table = value[:, :, None].repeat(1, 1, query.shape[2], 1, 1)
    for token in tokens:
        region = torch.ones(1, 1, 1, 1) if token.region is None else token.region
        for row, position in enumerate(token.position.tolist()):
            text = value[row, :, position][:, None]
            star = token.values[row].double()
            if token.value_norm.mode != "none":
                dims = (-1,) if token.value_norm.mode == "per_head" else (0, 2)
                length = star.norm(dim=dims, keepdim=True)
                star = token.value_norm.scale * text.norm(dim=dims, keepdim=True) * star / length
            m = region[row % len(region)].double()
            table[row, :, :, position] = text + token.strength * m * (star - text)
            logits[row, :, :, position] += m[..., 0] * math.log(token.token_weight)
    return torch.einsum("bhpt,bhptd->bhpd", logits.softmax(-1), table)


def _plain(query, key, value):
    return _by_value_table(query, key, value, [])


def _assert_equals_table(query, key, value, tokens):
    delta = attention.replacement_delta(query, key, value, tokens)
    expected = _by_value_table(query, key, value, tokens)
    torch.testing.assert_close((_plain(query, key, value) + delta), expected, rtol=1e-5, atol=1e-5)


def _token(values: Tensor, position: list[int], mode="per_head", **settings) -> BoundToken:
    return BoundToken(torch.tensor(position), values, ValueNorm(mode, 1.5), **settings)


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
    query, key, value = _layer(batch, heads, pixels, text_tokens, head_dim)
    tokens = []
    for index, (strength, weight) in enumerate(zip(strengths, weights, strict=True)):
        # Two tokens of one row never share a position.
        places = [p for p in range(text_tokens) if p % 2 == index]
        position = [data.draw(st.sampled_from(places)) for _ in range(batch)]
        masked = data.draw(st.booleans())
        region = torch.rand(batch, 1, pixels, 1, generator=torch.Generator().manual_seed(index))
        tokens.append(
            _token(
                _random(batch, heads, pixels, head_dim, seed=10 + index),
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
    query, key, value = _layer(1, 1, 3, 4, 16)
    weights = (query @ key.mT / 4).softmax(-1)
    torch.testing.assert_close(attention.nested_values(query, key, value), weights @ value)


def test_heads_survive_a_round_trip():
    merged = _random(2, 5, 12, seed=0)
    split = attention.split_heads(merged, 3)
    assert torch.equal(split[1, 2, 4], merged[1, 4, 8:12])
    assert torch.equal(attention.merge_heads(split), merged)


class TestValueNorm:
    TEXT = _random(2, 3, 1, 4, seed=1)
    VALUES = _random(2, 3, 7, 4, seed=2)

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
        ],
    )
    def test_without_strength_or_region(self, settings):
        query, key, value = _layer()
        token = _token(_random(2, 3, 7, 4, seed=9), [1, 4], **settings)
        delta = attention.replacement_delta(query, key, value, [token])
        assert torch.equal(delta, torch.zeros_like(query))

    def test_for_pixels_outside_the_region(self):
        query, key, value = _layer()
        region = torch.zeros(2, 1, 7, 1)
        region[:, :, 3] = 1.0
        token = _token(_random(2, 3, 7, 4, seed=9), [1, 4], region=region)
        delta = attention.replacement_delta(query, key, value, [token])
        assert torch.equal(delta[:, :, :3], torch.zeros(2, 3, 3, 4))
        assert bool((delta[:, :, 3] != 0).all())


def test_several_subjects_add():
    query, key, value = _layer()
    first, second = (_token(_random(2, 3, 7, 4, seed=i), [i, i]) for i in (1, 3))
    both = attention.replacement_delta(query, key, value, [first, second])
    alone = [attention.replacement_delta(query, key, value, [token]) for token in (first, second)]
    torch.testing.assert_close(both, sum(alone))


def test_a_table_over_the_budget_is_computed_in_pieces(monkeypatch):
    query, key, value = _layer(pixels=29)
    token = _token(_random(2, 3, 29, 4, seed=9), [1, 4], token_weight=3.0)
    whole = attention.replacement_delta(query, key, value, [token])
    monkeypatch.setattr(attention, "_MAX_TABLE_ELEMENTS", 2 * 3 * 5 * 4)
    pieces = attention.replacement_delta(query, key, value, [token])
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_inputs_are_computed_in_float32(dtype, tolerance):
    """Tolerance: the rounding of the inputs themselves."""
    query, key, value = (each.to(dtype) for each in _layer())
    values = _random(2, 3, 7, 4, seed=9).to(dtype)
    delta = attention.replacement_delta(query, key, value, [_token(values, [1, 4])])
    assert delta.dtype == torch.float32
    exact = attention.replacement_delta(
        *(each.float() for each in (query, key, value)), [_token(values.float(), [1, 4])]
    )
    torch.testing.assert_close(delta, exact, rtol=tolerance, atol=tolerance)
