"""Wan 2.1, which draws a picture where its video has one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...families.transformers import WAN
from ...sites import Site
from ..noise_schedule import FLOW_TIMESTEPS
from .description import Asked, FlowFamily
from .layers import CrossLayer
from .texts import Reader, encode_t5

_TEXT_TOKENS = 512  # as ComfyUI fills a prompt up


class Wan(FlowFamily):
    """Text of UMT5 in layers of its own; keys are normed all heads together."""

    family = WAN
    base = "wan"
    label = "Wan 2.1"
    pipelines = ("WanPipeline",)
    text_encoders = ("text_encoder",)
    is_video = True

    def problem(self, parts: Mapping[str, Any]) -> str | None:
        if (parts.get("transformer_2") or [None])[0]:
            return (
                "has two transformers, each for a part of the times; expected one, as Wan 2.1 has. The "
                "encoder may then be tried on Wan 2.2's."
            )
        if parts.get("expand_timesteps"):
            return "has latents 16 times smaller than the picture; expected 8, as Wan 2.1 has."
        return None

    def layer(self, site: Site) -> Any:
        return CrossLayer(site, norms_heads=False)

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        return [Reader(pipeline.tokenizer, "umt5xxl", WAN, _TEXT_TOKENS)]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return encode_t5(pipeline.tokenizer, pipeline.text_encoder, texts, _TEXT_TOKENS), {}

    def predict(self, model: Any, asked: Asked) -> Tensor:
        out = model(
            hidden_states=asked.noisy[:, :, None],
            timestep=asked.times * FLOW_TIMESTEPS,
            encoder_hidden_states=asked.text.context,
        ).sample
        return out[:, :, 0]
