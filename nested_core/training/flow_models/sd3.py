"""SD3 and SD3.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...families.transformers import SD3
from ...sites import Site
from ..noise_schedule import FLOW_TIMESTEPS
from .description import Asked, FlowFamily
from .layers import JointLayer
from .texts import Reader

# As ComfyUI fills a prompt up; it does not cut longer ones.
_CLIP_TOKENS = _T5_TOKENS = 77


class StableDiffusion3(FlowFamily):
    """Text of two CLIPs side by side, and behind it T5's: the noun has a place in each."""

    family = SD3
    base = "sd3"
    label = "SD3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def problem(self, parts: Mapping[str, Any]) -> str | None:
        if any(not (parts.get(name) or [None])[0] for name in self.text_encoders):
            return "lacks a text encoder; expected all three, two CLIPs and T5. Load the whole pipeline."
        return None

    def layer(self, site: Site) -> Any:
        return JointLayer(site)

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        return [
            Reader(pipeline.tokenizer, "l", SD3, _CLIP_TOKENS),
            Reader(pipeline.tokenizer_3, "t5xxl", SD3, _T5_TOKENS, first_row=_CLIP_TOKENS),
        ]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        context, _, pooled, _ = pipeline.encode_prompt(
            list(texts),
            None,
            None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=_T5_TOKENS,
        )
        return context, {"pooled": pooled}

    def predict(self, model: Any, asked: Asked) -> Tensor:
        return model(
            hidden_states=asked.noisy,
            encoder_hidden_states=asked.text.context,
            pooled_projections=asked.text.extras["pooled"],
            timestep=asked.times * FLOW_TIMESTEPS,
        ).sample
