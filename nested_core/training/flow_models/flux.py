"""Flux.1 dev and schnell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...families.transformers import FLUX
from ...sites import Site
from .description import Asked, FlowFamily
from .layers import JointLayer, rotate_pairs
from .texts import Reader

_TEXT_TOKENS = 256  # as ComfyUI fills a prompt up; it does not cut longer ones


class Flux(FlowFamily):
    """Text of T5 alone; CLIP gives one vector for all of it."""

    family = FLUX
    base = "flux"
    label = "Flux.1"
    pipelines = ("FluxPipeline",)
    text_encoders = ("text_encoder", "text_encoder_2")

    def layer(self, site: Site) -> Any:
        return JointLayer(site, rotate_pairs)

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        return [Reader(pipeline.tokenizer_2, "t5xxl", FLUX, _TEXT_TOKENS)]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        context, pooled, _ = pipeline.encode_prompt(
            list(texts), device=device, max_sequence_length=_TEXT_TOKENS
        )
        return context, {"pooled": pooled}

    def predict(self, model: Any, asked: Asked) -> Tensor:
        height, width = asked.grid
        places = torch.zeros(height, width, 3, device=asked.noisy.device)
        places[..., 1] = torch.arange(height)[:, None]
        places[..., 2] = torch.arange(width)[None]
        guidance = None
        if model.config.guidance_embeds:
            guidance = torch.full_like(asked.times, asked.guidance)
        out = model(
            hidden_states=asked.packed(),
            encoder_hidden_states=asked.text.context,
            pooled_projections=asked.text.extras["pooled"],
            timestep=asked.times,
            guidance=guidance,
            img_ids=places.flatten(0, 1),
            txt_ids=places.new_zeros(asked.text.context.shape[1], 3),
        ).sample
        return asked.unpacked(out)
