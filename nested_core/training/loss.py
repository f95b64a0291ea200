"""The objective: the base model's own noise-prediction loss, seen through the trained encoder.

A picture's latent `x` and noise `n` are mixed at a time `t`, and the network names what was mixed:

    x_t = alpha x + sigma n
    epsilon        predicts n                       alpha^2 + sigma^2 = 1
    v_prediction   predicts alpha n - sigma x       (arXiv:2202.00512)
    flow           predicts n - x                   alpha = 1 - t, sigma = t (arXiv:2210.02747)

The loss is the mean squared error, by sample, times two optional weights:

    min-SNR        min(snr, gamma) on the error of x, snr = alpha^2 / sigma^2 (arXiv:2303.09556)
    region         more on the subject than beside it; its mean over the picture stays 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..shapes import Float

Prediction = Literal["epsilon", "v_prediction", "flow"]

# What a network of flow matching is told at t = 1, as the diffusion models' last step is.
FLOW_TIMESTEPS = 1000


@dataclass(frozen=True)
class NoiseSchedule:
    """How the base model was trained: what it predicts, and its table of noise levels.

    Attributes:
        alphas_cumprod: alpha^2 per timestep of a diffusion model; None for flow matching.
        shift: of the times of flow matching, above 1 towards noise; 1: evenly drawn.
            (arXiv:2403.03206, section 5.3.2)
    """

    prediction: Prediction
    alphas_cumprod: Float[Tensor, " timesteps"] | None = None
    shift: float = 1.0

    def __post_init__(self) -> None:
        assert (self.alphas_cumprod is None) == (self.prediction == "flow")

    def times(self, uniform: Float[Tensor, " batch"]) -> Tensor:
        """Times from numbers in [0, 1): indices of the table, or t itself for flow matching."""
        if self.alphas_cumprod is None:
            return self.shift * uniform / (1.0 + (self.shift - 1.0) * uniform)
        return (uniform * len(self.alphas_cumprod)).long()

    def times_told(self, times: Tensor) -> Tensor:
        """The times as the network is told them."""
        return times if self.alphas_cumprod is not None else times * FLOW_TIMESTEPS

    def coefficients(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, `[batch, 1, 1, 1]` in float32."""
        if self.alphas_cumprod is None:
            alpha, sigma = 1.0 - times.float(), times.float()
        else:
            squared = self.alphas_cumprod.to(times.device, torch.float32)[times]
            alpha, sigma = squared.sqrt(), (1.0 - squared).sqrt()
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def mix(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t, what the network sees."""
        alpha, sigma = self.coefficients(times)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should answer."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - latents
        alpha, sigma = self.coefficients(times)
        return alpha * noise - sigma * latents

    def parts(self, noisy: Tensor, prediction: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The latent and the noise that a prediction claims were mixed; the inverse of `target`."""
        alpha, sigma = self.coefficients(times)
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        if self.prediction == "flow":
            return noisy - sigma * prediction, noisy + alpha * prediction
        return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction

    def min_snr_weights(self, times: Tensor, gamma: float) -> Float[Tensor, " batch"]:
        """min(snr, gamma) for an error of x, as a weight on the squared error of the prediction.

        An error e of the prediction is an error of x of e sigma / alpha (epsilon) or e sigma (v and
        flow). For epsilon that gives min(snr, gamma) / snr, without dividing where snr is 0.
        """
        alpha, sigma = (each.flatten() for each in self.coefficients(times))
        if self.prediction == "epsilon":
            return (gamma * sigma.square() / alpha.square()).clamp(max=1.0)
        return torch.minimum(alpha.square(), gamma * sigma.square())


def offset_noise(
    noise: Float[Tensor, "batch channels height width"],
    shift: Float[Tensor, "batch channels 1 1"],
    strength: float,
) -> Float[Tensor, "batch channels height width"]:
    """Noise whose mean varies by picture: lets a model learn very dark and very bright ones."""
    return noise + strength * shift


def region_weights(
    masks: Float[Tensor, "batch 1 image_height image_width"],
    subject_weight: float,
    grid: tuple[int, int],
) -> Float[Tensor, "batch 1 height width"]:
    """`subject_weight` inside the subject's mask for 1 outside, scaled to a mean of 1 by sample."""
    inside = functional.interpolate(masks.float(), size=grid, mode="area")
    weights = 1.0 + (subject_weight - 1.0) * inside
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


def noise_prediction_loss(
    prediction: Float[Tensor, "batch channels height width"],
    target: Float[Tensor, "batch channels height width"],
    sample_weights: Float[Tensor, " batch"] | None = None,
    pixel_weights: Float[Tensor, "batch 1 height width"] | None = None,
) -> Float[Tensor, ""]:
    """The weighted mean squared error, in float32."""
    error = (prediction.float() - target.float()).square()
    if pixel_weights is not None:
        error = error * pixel_weights
    by_sample = error.mean(dim=(1, 2, 3))
    if sample_weights is not None:
        by_sample = by_sample * sample_weights
    return by_sample.mean()
