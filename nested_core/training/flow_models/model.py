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
from ..nested_attention import NestedSubjects
from ..noise_schedule import FLOW_TIMESTEPS, NoiseSchedule
from .calls import Call, checkpointed, during
from .description import Asked, FlowFamily
from .encoding import Encoding, PipelineEncoding
from .layers import install
from .sharding import shard_frozen


class TransformerModel:
    """The `BaseModel` of a pipeline around a flow transformer. The pipeline's modules are frozen.

    Args:
        encoding: of captions and pictures; None: by the pipeline's modules.
    """

    def __init__(
        self,
        description: FlowFamily,
        pipeline: Any,
        vision: Any,
        schedule: NoiseSchedule,
        guidance: float = 1.0,
        encoding: Encoding | None = None,
    ) -> None:
        self.description, self.pipeline, self.vision = description, pipeline, vision
        self.guidance = guidance
        self._is_sharded = False
        self.transformer: Any = pipeline.transformer
        self.encoding: Encoding = encoding or PipelineEncoding(description, pipeline)
        self.family: AnyFamily = description.family
        self.base = description.base
        self.schedule = schedule
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

    def frozen_modules(self) -> Sequence[nn.Module]:
        return [self.transformer, self.vision, *self.encoding.modules()]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        # Not the libraries' own `to`, which warns of parts to be kept in float32.
        if self._is_sharded:
            nn.Module.to(self.transformer, dtype)
            shard_frozen(self.transformer, device)
        else:
            nn.Module.to(self.transformer, device, dtype)
        nn.Module.to(self.vision, device, dtype)
        self.encoding.place(device, dtype)

    def shard(self) -> None:
        """Each process is to hold a part of the transformer's weights, from `place` on."""
        self._is_sharded = True

    def save_memory(self) -> None:
        self.transformer.enable_gradient_checkpointing(checkpointed)

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        return self.description.projections(self._layers[site])

    def encode_captions(
        self, captions: Sequence[Caption], sizes: Sequence[PictureSize]
    ) -> TextConditions:
        """The rows that ComfyUI's text encoders give. Sizes are nothing to these models."""
        return self.encoding.texts(captions)

    def encode_pixels(
        self, pixels: Tensor, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch channels height width"]:
        mean, deviation = self.encoding.posterior(pixels)
        noise = randomise_rows(generators, torch.randn, *mean.shape[1:])
        return mean + deviation * noise.to(mean)

    def decode_latents(self, latents: Tensor) -> Float[Tensor, "batch 3 height width"]:
        return self.encoding.decode(latents)

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
