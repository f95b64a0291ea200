"""One batch's loss: every random number from the samples' own seeds, nothing kept in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..shapes import Float
from .loss import noise_prediction_loss, offset_noise, region_weights
from .protocol import Batch, Host
from .subjects import KeysValues, NestedSubjects

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

    def loss(self, host: Host, project: Project, batch: Batch) -> Float[Tensor, ""]:
        """The base model's noise-prediction loss with the batch's subjects in their nouns' places.

        Args:
            project: the trained module, or whatever wraps it.
        """
        device = host.frozen_modules()[0].parameters().__next__().device
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        latents = host.encode_pixels(batch.pixels.to(device), generators).float()
        times = host.schedule.times(_each(generators, torch.rand).to(device))
        noise = _each(generators, torch.randn, *latents.shape[1:]).to(device)
        if self.noise_offset:
            shift = _each(generators, torch.randn, latents.shape[1], 1, 1).to(device)
            noise = offset_noise(noise, shift, self.noise_offset)
        noisy = host.schedule.mix(latents, noise, times)

        text = host.encode_captions(batch.captions, batch.sizes)
        hidden_state = self.encoder_config.image_encoder.hidden_state
        features = host.patch_features(batch.reference_pixels.to(device), hidden_state)
        keys_values = project(features.float(), batch.image_dropped.to(device))
        subjects = NestedSubjects(keys_values, text.positions, self.encoder_config.value_norm)

        prediction = host.predict(noisy, host.schedule.times_told(times), text, subjects)
        return noise_prediction_loss(
            prediction,
            host.schedule.target(latents, noise, times),
            self._sample_weights(host, times),
            self._pixel_weights(batch, latents),
        )

    def _sample_weights(self, host: Host, times: Tensor) -> Tensor | None:
        if not self.min_snr_gamma:
            return None
        return host.schedule.min_snr_weights(times, self.min_snr_gamma)

    def _pixel_weights(self, batch: Batch, latents: Tensor) -> Tensor | None:
        if self.region_weight == 1.0:
            return None
        height, width = latents.shape[-2:]
        return region_weights(batch.masks.to(latents.device), self.region_weight, (height, width))


def _each(
    generators: list[torch.Generator], draw: Callable[..., Tensor], *shape: int
) -> Float[Tensor, "batch *shape"]:
    """One draw per sample, from its own generator, on the CPU: the same on every device."""
    return torch.stack([draw(shape, generator=generator) for generator in generators])
