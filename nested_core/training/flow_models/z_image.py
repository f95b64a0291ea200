"""Z-Image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...families.transformers import LUMINA2
from ...sites import Site
from .description import Asked, FlowFamily
from .layers import JointLayer, rotate_pairs
from .texts import Reader

_MULTIPLE = 32  # to which the model fills up text and picture
_TEXT_TOKENS = 512
_PLACE = "{}"


class ZImage(FlowFamily):
    """Text of Qwen3 in a template, which the model sees; text and picture in one stream."""

    family = LUMINA2
    base = "z_image"
    label = "Z-Image"
    pipelines = ("ZImagePipeline",)
    text_encoders = ("text_encoder",)

    def layer(self, site: Site) -> Any:
        return JointLayer(site, rotate_pairs, is_picture_first=True)

    def readers(self, pipeline: Any) -> Sequence[Reader]:
        template = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": _PLACE}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        end = len(pipeline.tokenizer(template.split(_PLACE)[1])["input_ids"])
        tokenizer = pipeline.tokenizer
        return [Reader(tokenizer, "qwen3_4b", LUMINA2, _TEXT_TOKENS, template, num_end_tokens=end)]

    def encode(
        self, pipeline: Any, texts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows, _ = pipeline.encode_prompt(
            list(texts),
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=_TEXT_TOKENS,
        )
        lengths = torch.tensor([len(each) for each in rows], device=rows[0].device)
        return pad_sequence(rows, batch_first=True), {"lengths": lengths}

    def num_text_tokens(self, asked: Asked) -> int:
        return -(-asked.text.context.shape[1] // _MULTIPLE) * _MULTIPLE

    def predict(self, model: Any, asked: Asked) -> Tensor:
        lengths = [int(each) for each in asked.text.extras["lengths"]]
        rows = [each[:length] for each, length in zip(asked.text.context, lengths, strict=True)]
        pictures = list(asked.noisy[:, :, None])  # a frame each
        out = model(pictures, 1.0 - asked.times, rows).sample
        return -torch.stack(list(out))[:, :, 0]
