"""The base model of a diffusion transformer of diffusers: what all families have in common."""

# diffusers and transformers are typed in part only; what leaves this file is typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import HiddenState, ImageEncoderConfig
from ...errors import HostError, SiteError
from ...families import AnyFamily
from ...shapes import Float
from ...sites import Site
from ...vision import patch_features
from ..base_model import Caption, PictureSize, TextConditions, randomise_rows
from ..errors import TrainingError
from ..nested_attention import NestedSubjects
from ..noise_schedule import FLOW_TIMESTEPS, NoiseSchedule
from .calls import Call, checkpointed, during
from .description import CELL, PATCH, Asked, FlowFamily
from .layers import install
from .texts import noun_rows, within_reach

_VAE_DTYPE = torch.float32


class TransformerModel:
    """The `BaseModel` of a pipeline around a flow transformer. The pipeline's modules are frozen."""

    def __init__(
        self,
        description: FlowFamily,
        pipeline: Any,
        vision: Any,
        schedule: NoiseSchedule,
        guidance: float = 1.0,
    ) -> None:
        self.description, self.pipeline, self.vision = description, pipeline, vision
        self.guidance = guidance
        self.transformer: Any = pipeline.transformer
        self.vae: Any = pipeline.vae
        self.family: AnyFamily = description.family
        self.base = description.base
        self.schedule = schedule
        problem = description.problem(pipeline)
        if problem:
            raise HostError(f"Training: this {description.label} {problem}")
        self._layers = self._find_layers()
        self.site_dims: Mapping[Site, int] = {
            site: description.projections(layer)[0].shape[0] for site, layer in self._layers.items()
        }
        install(
            self.transformer,
            {name: description.layer(site) for site, name in self._names.items()},
        )
        self.text_dim: int = self.projection_weights(next(iter(self._layers)))[0].shape[1]
        self.image_encoder = ImageEncoderConfig(
            "clip_vision", vision.config.hidden_size, vision.config.image_size
        )
        for module in self.frozen_modules():
            module.requires_grad_(False).eval()

    def _find_layers(self) -> dict[Site, Any]:
        names = [name for name, _ in self.transformer.named_modules()]
        try:
            self._names = dict[Site, str](self.description.family.sites_of(names).items())
        except SiteError as error:
            kind = type(self.transformer).__name__
            raise HostError(f"Training: {kind} has {error}") from error
        return {site: self.transformer.get_submodule(name) for site, name in self._names.items()}

    def text_encoders(self) -> list[Any]:
        """Those that are there."""
        found = (getattr(self.pipeline, name, None) for name in self.description.text_encoders)
        return [each for each in found if each is not None]

    def frozen_modules(self) -> Sequence[nn.Module]:
        return [self.transformer, self.vae, self.vision, *self.text_encoders()]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        for module in self.frozen_modules():
            nn.Module.to(module, device, _VAE_DTYPE if module is self.vae else dtype)

    def save_memory(self) -> None:
        self.transformer.enable_gradient_checkpointing(checkpointed)

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        return self.description.projections(self._layers[site])

    @torch.no_grad()
    def encode_captions(
        self, captions: Sequence[Caption], sizes: Sequence[PictureSize]
    ) -> TextConditions:
        """The rows that ComfyUI's text encoders give. Sizes are nothing to these models."""
        readers = self.description.readers(self.pipeline)
        captions = [within_reach(caption, readers) for caption in captions]
        device = self.text_encoders()[0].device
        context, extras = self.description.encode(
            self.pipeline, [caption.plain for caption in captions], device
        )
        return TextConditions(context, noun_rows(captions, readers, context.device), extras)

    @torch.no_grad()
    def encode_pixels(
        self, pixels: Tensor, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch channels height width"]:
        if pixels.shape[-1] % (PATCH * CELL) or pixels.shape[-2] % (PATCH * CELL):
            raise TrainingError(
                f"resolution is {pixels.shape[-1]}, expected a multiple of {PATCH * CELL} for "
                f"{self.description.label}."
            )
        pixels = pixels.to(self.vae.device, _VAE_DTYPE)
        posterior = self.vae.encode(self._as_video(pixels)).latent_dist
        mean, deviation = self._as_picture(posterior.mean), self._as_picture(posterior.std)
        noise = randomise_rows(generators, torch.randn, *mean.shape[1:])
        shift, scale = self._latent_statistics(mean)
        return (mean + deviation * noise.to(mean) - shift) / scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Float[Tensor, "batch 3 height width"]:
        latents = latents.to(_VAE_DTYPE)
        shift, scale = self._latent_statistics(latents)
        decoded = self.vae.decode(self._as_video(latents * scale + shift)).sample
        return self._as_picture(decoded).clamp(-1, 1).float()

    def _as_video(self, pictures: Tensor) -> Tensor:
        """With an axis of frames, one of them, for the VAEs of video models."""
        return pictures[:, :, None] if self.description.is_video else pictures

    def _as_picture(self, video: Tensor) -> Tensor:
        return video[:, :, 0] if self.description.is_video else video

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, of each channel or of all."""
        config = self.vae.config
        if "latents_mean" in config and config.latents_mean is not None:
            statistics = torch.tensor([config.latents_mean, config.latents_std]).to(like)
            mean, deviation = statistics[..., None, None]
            return mean, deviation
        shift = torch.tensor(config.shift_factor or 0.0).to(like)
        return shift, torch.tensor(1.0 / config.scaling_factor).to(like)

    @torch.no_grad()
    def patch_features(
        self, pixels: Tensor, hidden_state: HiddenState
    ) -> Float[Tensor, "batch patches hidden_size"]:
        return patch_features(self.vision, pixels.to(self.vision.dtype), hidden_state)

    def predict(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        times: Tensor,
        text: TextConditions,
        subjects: NestedSubjects | None,
    ) -> Float[Tensor, "batch channels height width"]:
        dtype = self.transformer.dtype
        extras = {
            name: each.to(dtype) if each.is_floating_point() else each
            for name, each in text.extras.items()
        }
        text = TextConditions(text.context.to(dtype), text.positions, extras)
        asked = Asked(noisy.to(dtype), times / FLOW_TIMESTEPS, text, self.guidance)
        height, width = asked.grid
        num_text = self.description.num_text_tokens(asked)
        with during(Call(subjects, num_text, height * width)):
            return self.description.predict(self.transformer, asked)
