"""The picture of a query-dependent value: principal components, their signs and their limits."""

from __future__ import annotations

import pytest
import torch
from tensors import random

from nested_core.maps import value_picture


def _layer(channels=8, heads=2, grid=(5, 6), seed=0):
    """Values with a clear order of their components, and a text value."""
    stretch = torch.tensor([8.0, 4.0, 2.0, 0.5] + [0.1] * (heads * channels - 4))
    points = random(grid[0] * grid[1], heads * channels, seed=seed) * stretch + 1.0
    turn = torch.linalg.qr(random(heads * channels, heads * channels, seed=seed + 1)).Q
    values = (points @ turn).view(-1, heads, channels).transpose(0, 1)
    return values, random(heads, 1, channels, seed=seed + 2), grid


def _by_svd(values, text_value):
    """The same by the full decomposition, in float64; signs left open."""
    points = values.double().transpose(0, 1).flatten(1)
    mean = points.mean(0)
    axes = torch.linalg.svd(points - mean).Vh[:3].T
    return (points - mean) @ axes, (text_value.double().flatten() - mean) @ axes


def test_value_picture_is_the_first_three_principal_components():
    values, text_value, grid = _layer()
    found = value_picture(values, text_value, grid)
    colours, flat = _by_svd(values, text_value)
    signs = (found.colours.double().flatten(0, 1) * colours).sum(0).sign()
    # float16 keeps three digits of coordinates up to about 20.
    torch.testing.assert_close(
        found.colours.double().flatten(0, 1) * signs, colours, rtol=2e-3, atol=1e-2
    )
    torch.testing.assert_close(found.flat.double() * signs, flat, rtol=2e-3, atol=1e-2)
    variances = values.transpose(0, 1).flatten(1).var(dim=0, correction=0)
    share = colours.square().mean(0).sum() / variances.sum()
    assert found.explained == pytest.approx(float(share), abs=1e-4)


def test_components_are_found_where_many_others_are_half_as_large():
    """As in real layers: without enough directions and rounds, the picture is of a mixture."""
    grid = (24, 24)
    stretch = torch.tensor([4.0, 3.0, 2.0, *[1.7] * 5, *[1.0] * 24])
    values = (random(grid[0] * grid[1], 32, seed=3) * stretch)[None]
    found = value_picture(values, torch.zeros(1, 1, 32), grid).colours.double().flatten(0, 1)
    expected, _ = _by_svd(values, torch.zeros(1, 1, 32))
    found = found * (found * expected).sum(0).sign()
    assert float(((found - expected).norm(dim=0) / expected.norm(dim=0)).max()) < 0.02


def test_value_picture_lies_as_its_grid():
    values = torch.arange(6.0).view(1, 6, 1).repeat(1, 1, 4)
    colours = value_picture(values, torch.zeros(1, 1, 4), (2, 3)).colours
    torch.testing.assert_close(
        colours[..., 0].float(), torch.tensor([[-5.0, -3, -1], [1, 3, 5]]), rtol=1e-3, atol=1e-3
    )
    assert not colours[..., 1:].any()  # one direction: no second and third component


def test_value_picture_neither_reads_nor_moves_the_random_state():
    values, text_value, grid = _layer()
    torch.manual_seed(1)
    first = value_picture(values, text_value, grid)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second = value_picture(values, text_value, grid)
    assert torch.equal(first.colours, second.colours)
    assert torch.equal(first.flat, second.flat)


def test_signs_stay_when_values_move_a_little():
    values, text_value, grid = _layer()
    first = value_picture(values, text_value, grid).colours.float().flatten(0, 1)
    for seed in range(10, 20):
        moved = values + 0.01 * random(*values.shape, seed=seed)
        second = value_picture(moved, text_value, grid).colours.float().flatten(0, 1)
        assert ((first * second).sum(0) > 0).all()


@pytest.mark.parametrize("number", [0.0, 1.0, 1e4])
def test_equal_values_are_zeros(number):
    values = random(2, 1, 8, seed=0).repeat(1, 6, 1) * number
    found = value_picture(values, torch.ones(2, 1, 8), (2, 3))
    assert not found.colours.any()
    assert not found.flat.any()
    assert found.explained == 0.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 8), (1, 6, 1), (1, 2, 2)])
def test_few_pixels_or_channels_are_no_trouble(shape):
    found = value_picture(
        random(*shape, seed=0), random(shape[0], 1, shape[2], seed=1), (1, shape[1])
    )
    assert found.colours.isfinite().all()
    assert found.colours.shape == (1, shape[1], 3)


def test_half_precision_values_give_the_same_picture():
    values, text_value, grid = _layer()
    exact = value_picture(values.half().float(), text_value.half().float(), grid)
    found = value_picture(values.half(), text_value.half(), grid)
    assert torch.equal(found.colours, exact.colours)
    assert found.colours.dtype == found.flat.dtype == torch.float16
