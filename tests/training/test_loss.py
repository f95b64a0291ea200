"""The loss against formulas written out by hand."""

from __future__ import annotations

import pytest
import torch

from nested_core.training.loss import noise_prediction_loss, offset_noise, region_weights


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_noise_offset_shifts_each_channel() -> None:
    noise, shift = random(2, 4, 3, 3), random(2, 4, 1, 1, seed=1)
    moved = offset_noise(noise, shift, 0.1)
    assert torch.allclose(moved - noise, (0.1 * shift).expand_as(noise), atol=1e-6)


def test_region_weights_have_a_mean_of_one() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :, :4] = 1
    weights = region_weights(masks, 3.0, (2, 2))
    assert torch.allclose(weights[0, 0], torch.tensor([[1.5, 0.5], [1.5, 0.5]]))
    assert torch.equal(weights[1], torch.ones(1, 2, 2))


def test_the_loss_by_hand() -> None:
    prediction, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]])
    assert float(noise_prediction_loss(prediction, target)) == pytest.approx((2.5 + 4.5) / 2)
    weighted = noise_prediction_loss(prediction, target, sample_weights=torch.tensor([1.0, 0.0]))
    assert float(weighted) == pytest.approx(2.5 / 2)
    pixels = torch.tensor([[[[2.0, 0.0]]], [[[1.0, 1.0]]]])
    regional = noise_prediction_loss(prediction, target, pixel_weights=pixels)
    assert float(regional) == pytest.approx((1.0 + 4.5) / 2)
