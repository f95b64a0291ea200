"""How a base model was trained: what it predicts of a noisy latent, and at which noise levels.

A picture's latent `x` and noise `n` are mixed at a time `t`, and the network names what was mixed:

    x_t = alpha x + sigma n
    epsilon        predicts n                       alpha^2 + sigma^2 = 1
    v_prediction   predicts alpha n - sigma x       (arXiv:2202.00512)
    flow           predicts n - x                   alpha = 1 - t, sigma = t (arXiv:2210.02747)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..shapes import Float
from .errors import TrainingError

Prediction = Literal["epsilon", "v_prediction", "flow"]

# A network of flow matching sees t = 1 as this timestep, a diffusion model's last.
FLOW_TIMESTEPS = 1000


@dataclass(frozen=True)
class ShiftBySize:
    """A shift that grows with the picture: m linear in the number of patches, and from it the shift.

    Attributes:
        patches: two numbers of patches.
        values: m at each.
        is_exponential: whether the shift is exp(m), and not m itself.
    """

    patches: tuple[int, int]
    values: tuple[float, float]
    is_exponential: bool = True

    def at(self, num_patches: int) -> float:
        """The shift for a picture of this many patches."""
        (first, last), (low, high) = self.patches, self.values
        value = low + (high - low) * (num_patches - first) / (last - first)
        return math.exp(value) if self.is_exponential else value


@dataclass(frozen=True)
class NoiseSchedule:
    """How the base model was trained: what it predicts, and its table of noise levels.

    Attributes:
        alphas_cumprod: alpha^2 per timestep of a diffusion model; None for flow matching.
        shift: of the times of flow matching, above 1 towards noise; 1: evenly drawn.
            (arXiv:2403.03206, section 5.3.2)
        shift_by_size: where the shift depends on the picture's size.
    """

    prediction: Prediction
    alphas_cumprod: Float[Tensor, " timesteps"] | None = None
    shift: float = 1.0
    shift_by_size: ShiftBySize | None = None

    def __post_init__(self) -> None:
        assert (self.alphas_cumprod is None) == (self.prediction == "flow")

    def of_size(self, height: int, width: int) -> NoiseSchedule:
        """The schedule for latents of this size, of whose cells 2 x 2 are a patch."""
        if self.shift_by_size is None:
            return self
        return replace(self, shift=self.shift_by_size.at((height // 2) * (width // 2)))

    def times(self, uniform: Float[Tensor, " batch"]) -> Tensor:
        """Times from numbers in [0, 1): indices of the table, or t itself for flow matching."""
        if self.alphas_cumprod is None:
            return self.shift * uniform / (1.0 + (self.shift - 1.0) * uniform)
        return (uniform * len(self.alphas_cumprod)).long()

    def timesteps(self, times: Tensor) -> Tensor:
        """The times as the network's input."""
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


def read_schedule(scheduler: Any) -> NoiseSchedule:
    """How the base model was trained, from its scheduler's configuration.

    Raises:
        TrainingError: a prediction that this trainer does not know.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return NoiseSchedule(
            "flow", shift=config.get("shift") or 1.0, shift_by_size=_shift_by_size(config)
        )
    if config.get("use_flow_sigmas"):
        return NoiseSchedule("flow", shift=config.get("flow_shift") or 1.0)
    prediction = config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise TrainingError(
            f"Training: the base model's scheduler predicts '{prediction}', expected "
            "epsilon, v_prediction or flow matching."
        )
    return NoiseSchedule(prediction, scheduler.alphas_cumprod.float())


def _shift_by_size(config: Any) -> ShiftBySize | None:
    if not config.get("use_dynamic_shifting"):
        return None
    return ShiftBySize(
        (config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)),
        (config.get("base_shift", 0.5), config.get("max_shift", 1.15)),
        config.get("time_shift_type", "exponential") == "exponential",
    )
