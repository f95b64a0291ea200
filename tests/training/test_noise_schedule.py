"""The noise schedule against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nested_core.training.noise_schedule import NoiseSchedule

ALPHAS = torch.linspace(0.999, 0.002, 50)
TABLES = {"epsilon": ALPHAS, "v_prediction": ALPHAS, "flow": None}


def schedule(prediction: str) -> NoiseSchedule:
    return NoiseSchedule(prediction, TABLES[prediction])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_epsilon_by_hand() -> None:
    x, n, times = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1), torch.tensor([0, 20, 49])
    mixed = schedule("epsilon").mix(x, n, times)
    for row, index in enumerate(times.tolist()):
        a = float(ALPHAS[index])
        assert torch.allclose(mixed[row], math.sqrt(a) * x[row] + math.sqrt(1 - a) * n[row])
    assert schedule("epsilon").target(x, n, times) is n


def test_v_by_hand() -> None:
    x, n, times = random(2, 4, 2, 2), random(2, 4, 2, 2, seed=1), torch.tensor([3, 40])
    target = schedule("v_prediction").target(x, n, times)
    for row, index in enumerate(times.tolist()):
        a = float(ALPHAS[index])
        assert torch.allclose(target[row], math.sqrt(a) * n[row] - math.sqrt(1 - a) * x[row])


def test_flow_by_hand() -> None:
    x, n, times = random(2, 4, 2, 2), random(2, 4, 2, 2, seed=1), torch.tensor([0.25, 0.9])
    flow = schedule("flow")
    mixed = flow.mix(x, n, times)
    assert torch.allclose(mixed[0], 0.75 * x[0] + 0.25 * n[0])
    assert torch.allclose(mixed[1], 0.1 * x[1] + 0.9 * n[1])
    assert torch.equal(flow.target(x, n, times), n - x)
    assert flow.timesteps(times).tolist() == pytest.approx([250.0, 900.0])


def test_times_cover_the_table() -> None:
    assert schedule("epsilon").times(torch.tensor([0.0, 0.5, 0.9999])).tolist() == [0, 25, 49]
    assert schedule("flow").times(torch.tensor([0.5])).tolist() == [0.5]


def test_shifted_times_go_towards_noise_and_keep_both_ends() -> None:
    times = NoiseSchedule("flow", shift=3.0).times(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert times.tolist() == pytest.approx([0.0, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("prediction", TABLES)
def test_parts_undo_the_target(prediction) -> None:
    kind, x, n = schedule(prediction), random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1)
    times = kind.times(torch.tensor([0.1, 0.5, 0.9]))
    clean, noise = kind.parts(kind.mix(x, n, times), kind.target(x, n, times), times)
    assert torch.allclose(clean, x, atol=1e-4)
    assert torch.allclose(noise, n, atol=1e-4)


def test_min_snr_by_hand() -> None:
    times, gamma = torch.tensor([0, 10, 30, 49]), 5.0
    snr = (ALPHAS / (1 - ALPHAS))[times]
    epsilon = schedule("epsilon").min_snr_weights(times, gamma)
    assert torch.allclose(epsilon, snr.clamp(max=gamma) / snr, rtol=1e-4)
    v = schedule("v_prediction").min_snr_weights(times, gamma)
    assert torch.allclose(v, snr.clamp(max=gamma) / (snr + 1), rtol=1e-4)
    t = torch.tensor([0.1, 0.5, 0.9])
    flow_snr = ((1 - t) / t) ** 2
    flow = schedule("flow").min_snr_weights(t, gamma)
    assert torch.allclose(flow, flow_snr.clamp(max=gamma) * t**2, rtol=1e-4)


@pytest.mark.parametrize("prediction", TABLES)
def test_min_snr_weighs_the_error_of_the_picture(prediction) -> None:
    """min(snr, gamma) |x' - x|^2 for a prediction that is off by 0.01 everywhere."""
    kind, x, n = schedule(prediction), random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1)
    times = kind.times(torch.tensor([0.1, 0.5, 0.9]))
    noisy, target = kind.mix(x, n, times), kind.target(x, n, times)
    wrong = (kind.parts(noisy, target + 0.01, times)[0] - x).square().mean(dim=(1, 2, 3))
    alpha, sigma = (each.flatten() for each in kind.coefficients(times))
    expected = (alpha / sigma).square().clamp(max=5.0) * wrong
    assert torch.allclose(kind.min_snr_weights(times, 5.0) * 0.01**2, expected, rtol=1e-2)


def test_min_snr_is_finite_without_any_signal() -> None:
    for prediction in ("epsilon", "v_prediction"):
        silent = NoiseSchedule(prediction, torch.tensor([0.5, 0.0]))
        weights = silent.min_snr_weights(torch.tensor([1]), 5.0)
        assert weights.tolist() == ([1.0] if prediction == "epsilon" else [0.0])
