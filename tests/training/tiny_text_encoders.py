"""Tiny text encoders of transformers, and the tokenizers that ComfyUI ships."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tiny_models import randomise
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    Qwen2TokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

CLIP_L, CLIP_G, TEXT = 16, 32, 24  # widths
_T5_WORDS = 32128


def host_folder() -> Path:
    """ComfyUI, whose tokenizers these pipelines use."""
    return Path(os.environ.get("NESTED_ATTENTION_HOST") or os.environ["COMFYUI_PATH"])


def _tokenizers(name: str) -> Path:
    return host_folder() / "comfy" / "text_encoders" / name


@contextmanager
def tokenizers_read_once() -> Generator[None, None, None]:
    """Each folder's, which takes a second."""
    base, read = PreTrainedTokenizerBase, PreTrainedTokenizerBase.__dict__["from_pretrained"]
    known: dict[Any, Any] = {}

    def from_pretrained(cls: Any, folder: Any, *arguments: Any, **options: Any) -> Any:
        key = cls, str(folder)
        if key not in known:
            known[key] = read.__get__(None, cls)(folder, *arguments, **options)
        return known[key]

    with mock.patch.object(base, "from_pretrained", classmethod(from_pretrained)):
        yield


def clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        host_folder() / "comfy" / "sd1_tokenizer", model_max_length=77
    )


def t5(width: int = TEXT, **options: Any) -> T5EncoderModel:
    """Its vocabulary repeats itself: at SD3's width, half a gigabyte of others would take seconds."""
    repeated = 64
    config = T5Config(
        d_model=width, d_ff=48, d_kv=8, num_heads=2, num_layers=2, vocab_size=repeated, **options
    )
    model = randomise(T5EncoderModel(config), 7)
    rows = model.get_input_embeddings().weight.data.repeat(_T5_WORDS // repeated, 1)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows))
    model.config.vocab_size = _T5_WORDS
    return model


@functools.cache
def t5_tokenizer() -> Any:
    return T5TokenizerFast.from_pretrained(_tokenizers("t5_tokenizer"))


QWEN: dict[str, Any] = {
    "hidden_size": TEXT,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
# Qwen3's, for a prompt alone; the tokenizer that ComfyUI ships is Qwen2.5's.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)


@functools.cache
def qwen_tokenizer() -> Any:
    tokenizer = Qwen2TokenizerFast.from_pretrained(_tokenizers("qwen25_tokenizer"))
    tokenizer.chat_template = _CHAT
    return tokenizer
