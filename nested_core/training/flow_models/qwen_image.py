"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...families.transformers import QWEN_IMAGE
from ...sites import Site
from .description import Asked, FlowFamily
from .layers import JointLayer, rotate_pairs
from .texts import Reader


class QwenImage(FlowFamily):
    """Text of Qwen2.5-VL: it reads a template, whose begin the model is not given."""

    family = QWEN_IMAGE
    base = "qwen_image"
    label = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    text_encoders = ("text_encoder",)
    is_video = True

    def layer(self, site: Site) -> Any:
        return JointLayer(site, lambda each, parts: rotate_pairs(each, torch.cat(parts[::-1])))

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        template = pipeline.prompt_template_encode
        return [
            Reader(
                pipeline.tokenizer,
                "qwen25_7b",
                QWEN_IMAGE,
                pipeline.tokenizer_max_length,
                template,
                num_cut=pipeline.prompt_template_encode_start_idx,
                num_end_tokens=_num_tokens(pipeline.tokenizer, template.split("{}")[1]),
            )
        ]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        context, kept = pipeline.encode_prompt(list(texts), device=device)
        if kept is None:  # texts of one length
            kept = torch.ones(context.shape[:2], device=context.device)
        return context, {"lengths": kept.sum(dim=1)}

    def predict(self, model: Any, asked: Asked) -> Tensor:
        rows = torch.arange(asked.text.context.shape[1], device=asked.noisy.device)
        kept: Tensor | None = rows[None] < asked.text.extras["lengths"][:, None]
        if bool(kept.all()):
            kept = None  # attention without a mask has the faster kernels
        out = model(
            hidden_states=asked.packed(),
            encoder_hidden_states=asked.text.context,
            encoder_hidden_states_mask=kept,
            timestep=asked.times,
            img_shapes=[[(1, *asked.grid)]] * len(asked.noisy),
        ).sample
        return asked.unpacked(out)


def _num_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text)["input_ids"])
