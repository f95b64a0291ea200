"""Captions as token ids, and the token in which the noun ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..prompt import MarkedToken, mark_tokens
from .protocol import SUBJECT, Caption

_END_OF_NOUN = "\U000f0000"  # a private code point, as in `prompt.py`


@dataclass(frozen=True)
class CaptionTokenizer:
    """A CLIP tokenizer of the transformers library with the length that the text encoder reads."""

    tokenizer: Any
    length: int

    def __call__(self, caption: Caption) -> tuple[list[int], int]:
        """Token ids at full length, and the position of the noun's last token (-1 without one).

        A caption whose noun lies behind the last position that is read would bind nothing; it is
        replaced by the noun alone.
        """
        marked = caption.text.replace(SUBJECT, caption.noun + _END_OF_NOUN, 1)
        marked = marked.replace(SUBJECT, caption.noun)
        ids = mark_tokens(marked, {_END_OF_NOUN: 1}, self._ids, self._lengths)
        found = [place for place, each in enumerate(ids) if isinstance(each, MarkedToken)]
        position = found[0] if found else -1
        is_bound = SUBJECT in caption.text
        if is_bound and not 0 <= position < self.length - 1:
            if caption.text == SUBJECT:
                raise ValueError(f"the noun '{caption.noun}' has no token that the encoder reads")
            logging.warning("The noun is out of reach, caption left out: %r", caption.text[:200])
            return self(Caption(SUBJECT, caption.noun))
        return self._at_full_length([int(each) for each in ids]), position

    def _at_full_length(self, ids: list[int]) -> list[int]:
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], self.tokenizer.eos_token_id]
        return ids + [self.tokenizer.pad_token_id] * (self.length - len(ids))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def _lengths(self, ids: list[int]) -> list[int]:
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        words: Sequence[str] = self.tokenizer.convert_ids_to_tokens(ids)
        return [
            0 if each in special else len(word.removesuffix("</w>"))
            for each, word in zip(ids, words, strict=True)
        ]


Tokenise = Callable[[Caption], tuple[list[int], int]]
