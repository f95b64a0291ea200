"""Masks cut to the part of a picture that a sampler draws."""

from __future__ import annotations

import pytest
import torch

from nested_core.binding import bind
from nested_core.errors import BindingError
from nested_core.region import cropped_to


@pytest.fixture
def masked(make_subject):
    mask = torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(0))
    return bind(make_subject(), "<anna>", mask=mask, strength=0.5)


def region_of(height, width, top, left, bottom, right, pictures=1):
    region = torch.zeros(pictures, height, width)
    region[-1, top:bottom, left:right] = 1.0
    return region


@pytest.mark.parametrize(
    "region, padding, rows, columns",
    [
        (region_of(16, 24, 2, 3, 10, 9), 0, (2, 10), (3, 9)),
        (region_of(16, 24, 2, 3, 10, 9), 2, (0, 12), (1, 11)),
        (region_of(16, 24, 2, 3, 10, 9), 99, (0, 16), (0, 24)),
        (region_of(8, 8, 2, 2, 4, 3), 0, (4, 8), (6, 9)),  # of another size
        (region_of(512, 768, 0, 767, 1, 768), 0, (0, 1), (23, 24)),  # less than a pixel of the mask
        (region_of(16, 24, 0, 0, 16, 24), 0, (0, 16), (0, 24)),
        (region_of(16, 24, 2, 3, 10, 9, pictures=3), 0, (2, 10), (3, 9)),
    ],
)
def test_the_box_around_the_region_is_cut_out(masked, region, padding, rows, columns):
    (found,) = cropped_to([masked], region, padding)
    assert torch.equal(found.mask, masked.mask[:, slice(*rows), slice(*columns)])
    assert (found.id, found.strength, found.token) == (masked.id, 0.5, "<anna>")


def test_a_binding_without_a_mask_stays(make_subject):
    plain = bind(make_subject(), "<anna>")
    assert cropped_to([plain], torch.ones(1, 4, 4)) == (plain,)


def test_a_single_mask_without_a_batch_will_do(masked):
    (found,) = cropped_to([masked], region_of(16, 24, 2, 3, 10, 9)[0])
    assert found.mask.shape == (2, 8, 6)


def test_an_empty_region_is_refused(masked):
    with pytest.raises(BindingError, match=r"^Crop Subject Masks: the region is empty.*Connect"):
        cropped_to([masked], torch.zeros(1, 4, 4))
