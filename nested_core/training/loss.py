"""The loss: the base model's own noise-prediction loss, seen through the trained encoder.

The mean squared error, by sample, times two optional weights:

    min-SNR        min(snr, gamma) on the error of x, snr = alpha^2 / sigma^2 (arXiv:2303.09556)
    region         more on the subject than beside it; its mean over the picture stays 1

Every random number comes from the samples' own seeds, and nothing is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..config import EncoderConfig
from ..shapes import Float
from .base_model import BaseModel, randomise_rows
from .data.batches import Batch
from .nested_attention import KeysValues, NestedSubjects

Project = Callable[[Tensor, Tensor], KeysValues]


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        min_snr_gamma: 0 for no min-SNR weighting.
        noise_offset: 0 for none.
        region_weight: weight of the subject's mask; 1 for none.
    """

    encoder_config: EncoderConfig
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    region_weight: float = 1.0

    def loss(self, base_model: BaseModel, project: Project, batch: Batch) -> Float[Tensor, ""]:
        """The base model's noise-prediction loss with the batch's subjects in their nouns' places.

        Args:
            project: the trained module, or whatever wraps it.
        """
        device = next(base_model.frozen_modules()[0].parameters()).device
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        latents = base_model.encode_pixels(batch.pixels.to(device), generators).float()
        schedule = base_model.schedule.of_size(*latents.shape[-2:])
        times = schedule.times(randomise_rows(generators, torch.rand).to(device))
        noise = randomise_rows(generators, torch.randn, *latents.shape[1:]).to(device)
        if self.noise_offset:
            shift = randomise_rows(generators, torch.randn, latents.shape[1], 1, 1).to(device)
            noise = offset_noise(noise, shift, self.noise_offset)
        noisy = schedule.mix(latents, noise, times)

        text = base_model.encode_captions(batch.captions, batch.sizes)
        hidden_state = self.encoder_config.image_encoder.hidden_state
        features = base_model.patch_features(batch.reference_pixels.to(device), hidden_state)
        keys_values = project(features.float(), batch.image_dropped.to(device))
        subjects = NestedSubjects(
            keys_values,
            text.positions,
            self.encoder_config.value_norm,
            self.encoder_config.nested_key,
        )
        prediction = base_model.predict(noisy, schedule.timesteps(times), text, subjects)

        sample_weights = pixel_weights = None
        if self.min_snr_gamma:
            sample_weights = schedule.min_snr_weights(times, self.min_snr_gamma)
        if self.region_weight != 1.0:
            height, width = latents.shape[-2:]
            masks = batch.masks.to(device)
            pixel_weights = region_weights(masks, self.region_weight, (height, width))
        target = schedule.target(latents, noise, times)
        return noise_prediction_loss(prediction, target, sample_weights, pixel_weights)


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
