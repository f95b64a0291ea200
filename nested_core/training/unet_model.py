"""The base model of SD1.5 and SDXL: a UNet of diffusers, by its attributes."""

# diffusers and transformers are typed in part only; what leaves this file is typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from ..config import HiddenState, ImageEncoderConfig
from ..errors import HostError, SiteError
from ..families import AnyFamily
from ..families.unet import UNET
from ..shapes import Float
from ..sites import Site
from ..vision import patch_features
from .base_model import Caption, CaptionTokenizer, PictureSize, TextConditions, randomise_rows
from .nested_attention import SUBJECTS_KEY, NestedSubjects, install_processors
from .noise_schedule import read_schedule

# SDXL's VAE overflows in half precision; the others' are small beside the UNet.
_VAE_DTYPE = torch.float32


class UNetModel:
    """The `BaseModel` of a Stable Diffusion or SDXL pipeline. The pipeline's modules are frozen."""

    family: AnyFamily = UNET

    def __init__(self, pipeline: Any, vision: Any) -> None:
        self.unet: Any = pipeline.unet
        self.vae: Any = pipeline.vae
        self.vision: Any = vision
        self.text_encoders: list[Any] = _present(pipeline, "text_encoder", "text_encoder_2")
        tokenizers = _present(pipeline, "tokenizer", "tokenizer_2")
        self._is_sdxl = len(self.text_encoders) == 2
        self.base = "sdxl" if self._is_sdxl else "sd15"
        self._tokenisers = [
            CaptionTokenizer(tokenizer, encoder.config.max_position_embeddings, name)
            for tokenizer, encoder, name in zip(
                tokenizers, self.text_encoders, UNET.tokenizers, strict=False
            )
        ]
        self._layers: Mapping[Site, Any] = find_sites(self.unet)
        self.site_dims: Mapping[Site, int] = {
            site: layer.to_k.out_features for site, layer in self._layers.items()
        }
        install_processors(self.unet, self._layers)
        self.text_dim: int = self.unet.config.cross_attention_dim
        self.schedule = read_schedule(pipeline.scheduler)
        self.image_encoder = ImageEncoderConfig(
            "clip_vision", vision.config.hidden_size, vision.config.image_size
        )
        for module in self.frozen_modules():
            module.requires_grad_(False).eval()

    def frozen_modules(self) -> Sequence[nn.Module]:
        return [self.unet, self.vae, self.vision, *self.text_encoders]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        for module in self.frozen_modules():
            # Not the libraries' own `to`, which warns of parts to be kept in float32 (there are none).
            nn.Module.to(module, device, _VAE_DTYPE if module is self.vae else dtype)

    def save_memory(self) -> None:
        self.unet.enable_gradient_checkpointing()

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        layer = self._layers[site]
        return layer.to_k.weight, layer.to_v.weight

    @torch.no_grad()
    def encode_captions(
        self, captions: Sequence[Caption], sizes: Sequence[PictureSize]
    ) -> TextConditions:
        """As the pipelines do: SD1.5 reads the last layer; SDXL both encoders' last but one."""
        device = self.unet.device
        contexts: list[Tensor] = []
        pooled: list[Tensor] = []
        positions: list[int] = []
        for tokenise, encoder in zip(self._tokenisers, self.text_encoders, strict=True):
            rows = [tokenise(caption) for caption in captions]
            positions = [position for _, position in rows]
            ids = torch.tensor([row for row, _ in rows], device=device)
            outputs = encoder(ids, output_hidden_states=True)
            contexts.append(
                outputs.hidden_states[-2] if self._is_sdxl else outputs.last_hidden_state
            )
            pooled.append(outputs[0])
        extras: dict[str, Tensor] = {}
        if self._is_sdxl:
            # SDXL's micro-conditioning (arXiv:2307.01952, section 2.2), in the order of the fields.
            time_ids = torch.tensor([astuple(size) for size in sizes]).to(contexts[0])
            extras = {"text_embeds": pooled[-1], "time_ids": time_ids}
        context = torch.cat(contexts, dim=-1)
        return TextConditions(context, torch.tensor(positions, device=device), extras)

    @torch.no_grad()
    def encode_pixels(
        self, pixels: Tensor, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch channels height width"]:
        posterior = self.vae.encode(pixels.to(self.vae.device, _VAE_DTYPE)).latent_dist
        mean, deviation = posterior.mean, posterior.std
        noise = randomise_rows(generators, torch.randn, *mean.shape[1:])
        latents = mean + deviation * noise.to(mean)
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Float[Tensor, "batch 3 height width"]:
        scaled = latents.to(_VAE_DTYPE) / self.vae.config.scaling_factor
        decoded = self.vae.decode(scaled + (self.vae.config.shift_factor or 0.0)).sample
        return decoded.clamp(-1, 1).float()

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
        return self.unet(
            noisy.to(self.unet.dtype),
            times,
            encoder_hidden_states=text.context,
            added_cond_kwargs=dict(text.extras),
            cross_attention_kwargs={} if subjects is None else {SUBJECTS_KEY: subjects},
        ).sample


def _present(pipeline: Any, *names: str) -> list[Any]:
    parts = (getattr(pipeline, name, None) for name in names)
    return [part for part in parts if part is not None]


def find_sites(unet: nn.Module) -> dict[Site, Any]:
    """The UNet's cross-attention layers under ComfyUI's numbers.

    Raises:
        HostError: no cross-attention, blocks that ComfyUI's numbering does not know, or layers that
            do more than attend.
    """
    modules: dict[str, Any] = dict(unet.named_modules())
    try:
        names = UNET.sites_of(modules)
    except SiteError as error:
        raise HostError(f"Training: {type(unet).__name__} has {error}") from error
    for name in names.values():
        _check_plain(name, modules[name])
    return {site: modules[name] for site, name in names.items()}


def _check_plain(name: str, attention: Any) -> None:
    unknown = [
        part
        for part in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
        if getattr(attention, part, None)
    ]
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        unknown.append("residual connection or rescaling")
    if unknown:
        raise HostError(
            f"Training: the cross-attention at {name} has {', '.join(unknown)}, which the nodes do "
            "not know. Use a base model of the SD1.5 or SDXL family."
        )
