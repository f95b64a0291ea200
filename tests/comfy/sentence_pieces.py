"""Small SentencePiece models in the order of special tokens that T5 and Gemma have.

ComfyUI finds these tokenizers in the checkpoint of the text encoder and ships none.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import sentencepiece
import torch

SIZE = 400  # `<end_of_turn>` of Gemma is token 107
_TEXT = """
a woman and a dog in a coffee shop
a pencil drawing of a woman with a black dog
the person reads a book in the sunny garden of an old house
portrait of a man, photograph, oil painting, watercolour, blurry, low quality
a cat sleeps on the red sofa while two children play with wooden robots
mountains behind a lake in the morning, clouds above the quiet village
queens and kings walk through the long hall, music plays, lamps shine
every picture shows one subject from the front, from the side or from far away
"""


@functools.cache
def umt5() -> torch.Tensor:
    """The model as the tensor `spiece_model` of a checkpoint."""
    return _train(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@functools.cache
def gemma() -> torch.Tensor:
    """The same with Gemma's special tokens, and no space in front of the first word."""
    return _train(model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False)


def _train(**options: Any) -> torch.Tensor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.strip().splitlines()),
        model_writer=written,
        vocab_size=SIZE,
        hard_vocab_limit=False,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
