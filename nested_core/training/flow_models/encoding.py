"""What makes a transformer's inputs of captions and pictures: its text encoders and its VAE."""

# diffusers and transformers are typed in part only; what leaves this file is typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...shapes import Float
from ..base_model import Caption, TextConditions
from ..errors import TrainingError
from .description import CELL, PATCH, FlowFamily
from .texts import noun_rows, within_reach

VAE_DTYPE = torch.float32


@runtime_checkable
class Encoding(Protocol):
    """Captions and pictures of one model, and pictures back."""

    def modules(self) -> Sequence[nn.Module]:
        """Those that are in memory."""
        ...

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Where and in which precision they are to run."""
        ...

    def texts(self, captions: Sequence[Caption]) -> TextConditions:
        """The rows that ComfyUI's text encoders give, and where the nouns end."""
        ...

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, as the transformer takes them, in float32.

        Raises:
            TrainingError: the picture is not made of whole patches.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1], float32."""
        ...


class PipelineEncoding:
    """By the modules of a pipeline of diffusers. Those that it has not must not be asked."""

    def __init__(self, description: FlowFamily, pipeline: Any) -> None:
        self.description, self.pipeline = description, pipeline
        self.vae: Any = pipeline.vae
        for module in self.modules():
            module.requires_grad_(False).eval()

    def text_encoders(self) -> list[Any]:
        """Those that are there."""
        found = (getattr(self.pipeline, name, None) for name in self.description.text_encoders)
        return [each for each in found if each is not None]

    def modules(self) -> Sequence[nn.Module]:
        return [each for each in (self.vae, *self.text_encoders()) if each is not None]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        for module in self.modules():
            # Not the libraries' own `to`, which warns of parts to be kept in float32.
            nn.Module.to(module, device, VAE_DTYPE if module is self.vae else dtype)

    @torch.no_grad()
    def texts(self, captions: Sequence[Caption]) -> TextConditions:
        readers = self.description.readers(self.pipeline)
        captions = [within_reach(caption, readers) for caption in captions]
        context, extras = self.description.encode(
            self.pipeline,
            [caption.plain for caption in captions],
            self.text_encoders()[0].device,
        )
        return TextConditions(context, noun_rows(captions, readers, context.device), extras)

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.shape[-1] % (PATCH * CELL) or pixels.shape[-2] % (PATCH * CELL):
            raise TrainingError(
                f"resolution is {pixels.shape[-1]}, expected a multiple of {PATCH * CELL} for "
                f"{self.description.label}."
            )
        pixels = pixels.to(self.vae.device, VAE_DTYPE)
        posterior = self.vae.encode(self._as_video(pixels)).latent_dist
        mean, deviation = self._as_picture(posterior.mean), self._as_picture(posterior.std)
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale, deviation / scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Float[Tensor, "batch 3 height width"]:
        latents = latents.to(self.vae.device, VAE_DTYPE)
        shift, scale = self._statistics(latents)
        decoded = self.vae.decode(self._as_video(latents * scale + shift)).sample
        return self._as_picture(decoded).clamp(-1, 1).float()

    def _as_video(self, pictures: Tensor) -> Tensor:
        """With an axis of frames, one of them, for the VAEs of video models."""
        return pictures[:, :, None] if self.description.is_video else pictures

    def _as_picture(self, video: Tensor) -> Tensor:
        return video[:, :, 0] if self.description.is_video else video

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, of each channel or of all."""
        config = self.vae.config
        if "latents_mean" in config and config.latents_mean is not None:
            statistics = torch.tensor([config.latents_mean, config.latents_std]).to(like)
            mean, deviation = statistics[..., None, None]
            return mean, deviation
        shift = torch.tensor(config.shift_factor or 0.0).to(like)
        return shift, torch.tensor(1.0 / config.scaling_factor).to(like)
