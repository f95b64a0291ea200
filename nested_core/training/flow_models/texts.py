"""Captions for language models: in which row of an encoded text a noun ends.

The rows are those that ComfyUI's text encoders give of the same prompt: there the subject is bound.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...families import AnyFamily
from ...shapes import Float, Int
from ..base_model import SUBJECT, Caption, CaptionTokenizer, TextConditions


@dataclass(frozen=True)
class Reader:
    """One text encoder's view of a caption.

    Attributes:
        tokenizer: of the transformers library.
        name: ComfyUI's short name of it.
        num_tokens: the caption's tokens that are read at most, with those that end it.
        template: what the encoder reads, `{}` standing for the caption.
        num_cut: tokens at the template's begin whose rows the model is not given.
        first_row: where this encoder's rows begin.
        num_end_tokens: that every text ends with.
    """

    tokenizer: Any
    name: str
    family: AnyFamily
    num_tokens: int
    template: str = "{}"
    num_cut: int = 0
    first_row: int = 0
    num_end_tokens: int = 1

    def row(self, caption: Caption) -> int:
        """The row in which the noun ends; -1 where there is none, or it lies too far behind."""
        templated = replace(caption, text=self.template.replace("{}", caption.text))
        tokenise = CaptionTokenizer(self.tokenizer, self.num_tokens, self.name, self.family)
        _, position = tokenise.find(templated)
        place = position - self.num_cut
        is_read = self.num_cut <= position and place < self.num_tokens - self.num_end_tokens
        return place + self.first_row if is_read else -1


def within_reach(caption: Caption, readers: Sequence[Reader]) -> Caption:
    """The caption; or the noun alone, where not every text encoder reads as far as the noun."""
    if SUBJECT not in caption.text or all(reader.row(caption) >= 0 for reader in readers):
        return caption
    if caption.text == SUBJECT:
        raise ValueError(f"the noun '{caption.noun}' has no token that the encoders read")
    logging.warning("The noun is out of reach, caption left out: %r", caption.text[:200])
    return within_reach(Caption(SUBJECT, caption.noun), readers)


def noun_rows(
    captions: Sequence[Caption], readers: Sequence[Reader], device: torch.device
) -> Int[Tensor, "batch readers"]:
    """Where the nouns end, for each text encoder."""
    rows = [[reader.row(caption) for reader in readers] for caption in captions]
    return torch.tensor(rows, device=device)


def encode_t5(
    tokenizer: Any, text_encoder: Any, texts: Sequence[str], num_tokens: int
) -> Float[Tensor, "batch tokens width"]:
    """Texts of T5 or one of its kind, filled up with rows of zeros, as ComfyUI does."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=num_tokens,
        truncation=True,
        return_tensors="pt",
    ).to(text_encoder.device)
    rows = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return rows * tokens.attention_mask[..., None].to(rows)


def stack_texts(texts: Sequence[TextConditions]) -> TextConditions:
    """Texts of one row each as one; shorter ones are filled up with zeros, as the families do."""
    return TextConditions(
        pad_sequence([each.context[0] for each in texts], batch_first=True),
        torch.cat([each.positions for each in texts]),
        {name: torch.cat([each.extras[name] for each in texts]) for name in texts[0].extras},
    )
