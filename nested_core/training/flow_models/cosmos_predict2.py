"""Cosmos-Predict2, text to image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...families.transformers import COSMOS_PREDICT2
from ...sites import Site
from .description import Asked, FlowFamily
from .layers import CrossLayer
from .texts import Reader, encode_t5

_TEXT_TOKENS = 512  # as ComfyUI fills a prompt up


class CosmosPredict2(FlowFamily):
    """Text of T5 in layers of its own. Its pipeline calls what the model answers a noise prediction,
    of which it makes the picture as of a velocity: at t = sigma / (1 + sigma) they are the same."""

    family = COSMOS_PREDICT2
    base = "cosmos_predict2"
    label = "Cosmos-Predict2"
    pipelines = ("Cosmos2TextToImagePipeline",)
    text_encoders = ("text_encoder",)
    is_video = True

    def layer(self, site: Site) -> Any:
        return CrossLayer(site, norms_heads=True)

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        return [Reader(pipeline.tokenizer, "t5xxl", COSMOS_PREDICT2, _TEXT_TOKENS)]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return encode_t5(pipeline.tokenizer, pipeline.text_encoder, texts, _TEXT_TOKENS), {}

    def predict(self, model: Any, asked: Asked) -> Tensor:
        out = model(
            hidden_states=asked.noisy[:, :, None],
            timestep=asked.times,
            encoder_hidden_states=asked.text.context,
            padding_mask=asked.noisy.new_zeros(1, 1, *asked.noisy.shape[-2:]),
        ).sample
        return out[:, :, 0]
