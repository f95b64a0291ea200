"""Colours, sizes and numbers of the sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nested_core.maps import ValuePicture
from nested_core.maps.canvas import colour_scale, in_rows, number
from nested_core.maps.colours import blended, laid_over, scale_colours, subject_colour
from nested_core.maps.panels import map_size
from nested_core.maps.value_sheet import value_colours


@pytest.mark.parametrize(
    "grid, widest, size",
    [
        ((64, 64), 900, (100, 100)),
        ((50, 72), 900, (120, 83)),  # the area of the square
        ((20, 80), 900, (130, 32)),
        ((80, 20), 900, (32, 130)),
        ((64, 64), 50, (50, 50)),
        ((1, 200), 900, (130, 24)),
    ],
)
def test_map_sizes(grid, widest, size):
    assert map_size(grid, 100, widest) == size


def test_lightness_rises_evenly_along_the_scale():
    colours = scale_colours(np.linspace(0, 1, 101, dtype=np.float32)[None])[0]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    rises = np.diff(lightness)
    assert rises.min() > 0.3
    assert rises.max() < 1.5
    assert lightness[-1] - lightness[0] > 80


def test_the_scale_ends_hold_what_lies_outside():
    low, zero, one, high = scale_colours(np.array([[-1, 0, 1, 2]], dtype=np.float32))[0]
    assert np.array_equal(low, zero)
    assert np.array_equal(high, one)
    assert zero.sum() < 0.5
    assert one.sum() > 2.5


def test_a_map_over_an_image_keeps_its_order_of_lightness():
    image = np.full((1, 11, 3), 0.5, dtype=np.float32)
    shares = np.linspace(0, 1, 11, dtype=np.float32)[None]
    assert (np.diff(laid_over(shares, image).sum(axis=-1)[0]) > 0).all()


def test_a_pixel_has_the_hue_of_its_strongest_subject_and_a_mixture_where_two_are_alike():
    colours = [subject_colour(0), subject_colour(1)]
    shares = np.array([[[1.0, 0.6, 0.8]], [[0.6, 1.0, 0.8]]], dtype=np.float32)
    first, second, both = blended(shares, colours, None)[0] * 255
    own, other = (np.array(each, dtype=np.float32) for each in colours)
    for found, hue, wrong in ((first, own, other), (second, other, own)):
        assert np.abs(found - hue).sum() < 0.15 * np.abs(found - wrong).sum()
    assert np.allclose(both - 0.264 * 23, 0.736 * (own + other) / 2, atol=2)


def test_an_image_under_a_map_is_grey():
    shares = np.zeros((1, 1), dtype=np.float32)
    red, green = (np.array([[each]], dtype=np.float32) for each in ((0.7152, 0, 0), (0, 0.2126, 0)))
    assert np.allclose(laid_over(shares, red), laid_over(shares, green), atol=1e-6)
    assert not np.allclose(laid_over(shares, red), laid_over(shares, 2 * red), atol=0.01)


def test_a_legend_rises_from_left_to_right_as_the_scale_does():
    bar = np.asarray(colour_scale(0.4, "attention"), dtype=np.float32)[26] / 255
    assert np.allclose(bar[[0, 319]], scale_colours(np.array([[0.0, 1.0]]))[0], atol=0.01)


def test_images_go_from_left_to_right_then_down():
    images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(5)]
    found = np.asarray(in_rows(images, 2, gap=1, row_gap=2))
    assert found[::6, ::5, 0].flatten().tolist()[:5] == [0, 1, 2, 3, 4]


def test_subjects_have_colours_of_their_own():
    assert len({subject_colour(place) for place in range(8)}) == 8


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.5, "0.5"),
        (0.3062, "0.31"),
        (0.0911, "0.091"),
        (0.00012, "0.00012"),
        (12.3, "12"),
        (0.1, "0.1"),
        (0.999, "1"),
        (200.0, "200"),
    ],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_values_are_coloured_over_their_own_range():
    points = torch.zeros(1, 101, 3)
    points[0, :, 0] = torch.linspace(-5, 5, 101)
    points[0, :, 1] = torch.linspace(10, 12, 101)
    points[0, :, 2] = torch.linspace(-0.1, 0.1, 101)
    flat = torch.tensor([0.0, 99.0, -99.0])
    nested, without = value_colours(ValuePicture(points.half(), flat.half(), 1.0))
    assert np.allclose(nested[0, 0], [0, 0, 0.4], atol=0.02)
    assert np.allclose(nested[0, -1], [1, 1, 0.6], atol=0.02)
    assert np.allclose(without, [[[0.5, 1, 0]]], atol=0.01)


def test_a_few_values_far_away_do_not_take_the_colours_from_the_rest():
    points = torch.zeros(1, 1000, 3)
    points[0, :, 0] = torch.linspace(0, 1, 1000)
    points[0, -1, 0] = 100.0
    nested, _ = value_colours(ValuePicture(points.half(), torch.zeros(3).half(), 1.0))
    assert np.ptp(nested[0, :-1, 0]) > 0.95


def test_values_that_are_all_equal_are_grey():
    equal = ValuePicture(torch.zeros(2, 2, 3).half(), torch.zeros(3).half(), 0.0)
    for colours in value_colours(equal):
        assert (colours == 0.5).all()
