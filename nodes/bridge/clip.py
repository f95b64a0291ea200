"""The text encoder that reads nouns where a prompt has bound tokens, and remembers where."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias, cast

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ...nested_core.binding import Binding, merge_bindings
from ...nested_core.prompt import MarkedPrompt, MarkedToken, mark_prompt, mark_tokens
from .conditioning import SLOTS_KEY, SlotMap
from .delivery import note_encoded, note_written

Tokens: TypeAlias = dict[str, list[list[tuple[Any, ...]]]]


def bind_clip(clip: CLIP, bindings: Sequence[Binding]) -> CLIP:
    """A clone of the text encoder that knows these bindings besides those it knew before."""
    earlier = clip.nested_bindings if isinstance(clip, _BoundCLIP) else ()
    return _bound(clip.clone(), merge_bindings(earlier, bindings))


def _bound(clip: CLIP, bindings: Sequence[Binding]) -> CLIP:
    if not isinstance(clip, _BoundCLIP):
        clip.__class__ = _bound_class(type(clip))
    cast("_BoundCLIP", clip).nested_bindings = tuple(bindings)
    return clip


@cache
def _bound_class(base: type[CLIP]) -> type[CLIP]:
    """Another pack's own kind of CLIP keeps what it overrides."""
    return type("NestedAttentionCLIP", (_BoundCLIP, base), {})


class _BoundCLIP(CLIP):
    """Mixed into the class of the incoming CLIP.

    The mark of a bound token rides on the token id itself, so that nodes may iterate over the
    tokens, swap `tokens["l"]`, or drop some, and the marks stay right.
    """

    nested_bindings: tuple[Binding, ...] = ()

    def clone(self, *args: Any, **kwargs: Any) -> CLIP:
        return _bound(super().clone(*args, **kwargs), self.nested_bindings)

    def tokenize(self, text: Any, return_word_ids: bool = False, **kwargs: Any) -> Tokens:
        prompt = mark_prompt(text, self.nested_bindings) if isinstance(text, str) else None
        if prompt is None or not prompt.ends:
            return super().tokenize(text, return_word_ids, **kwargs)
        plain = super().tokenize(prompt.plain, return_word_ids, **kwargs)
        marked = self._tokenize_marked(prompt, return_word_ids, kwargs)
        if not _same_tokens(plain, marked):
            logging.warning(
                "Nested Attention: the bound tokens of this prompt stand where they change how it "
                "is read (inside a weight or an embedding's name); they are left unbound: %r",
                text,
            )
            return plain
        note_written(prompt.ends.values())
        return marked

    def _tokenize_marked(
        self, prompt: MarkedPrompt, return_word_ids: bool, kwargs: dict[str, Any]
    ) -> Tokens:
        # A twin with a marking tokenizer: the tokenizer itself is shared with every other CLIP.
        twin = copy.copy(self)
        twin.tokenizer = _marking_tokenizer(self.tokenizer, prompt.ends)
        return super(_BoundCLIP, twin).tokenize(prompt.marked, return_word_ids, **kwargs)

    def encode_from_tokens(
        self, tokens: Tokens, return_pooled: Any = False, return_dict: bool = False
    ) -> Any:
        encoded = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if return_dict:
            encoded = cast("dict[str, Any]", encoded)
            self._attach_slots(encoded, encoded["cond"], tokens)
        return encoded

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        conditioning = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for context, extras in conditioning:
            self._attach_slots(extras, context, tokens)
        return conditioning

    def _attach_slots(self, extras: dict[str, Any], context: Tensor, tokens: Tokens) -> None:
        if SLOTS_KEY in extras.get("model_conds", {}):
            return
        slots = self._slots(tokens, context.shape[1])
        if slots is not None:
            extras["model_conds"] = {**extras.get("model_conds", {}), SLOTS_KEY: slots}
            note_encoded(slots)

    def _slots(self, tokens: Tokens, num_tokens: int) -> SlotMap | None:
        """Which rows of the context are bound; where l and g mark one differently, g wins."""
        slots = torch.zeros(num_tokens, dtype=torch.int32)
        for encoder, width in self._embedding_widths().items():
            for row, binding_id in _marks(tokens.get(encoder, []), width):
                if row < num_tokens:
                    slots[row] = binding_id
        return SlotMap(slots[None, :, None]) if bool(slots.any()) else None

    def _embedding_widths(self) -> dict[str, int]:
        """Of the text models that are there: the refiner is given tokens of L and has none."""
        models = {name: getattr(self.cond_stage_model, f"clip_{name}", None) for name in "lg"}
        return {
            name: model.transformer.get_input_embeddings().weight.shape[-1]
            for name, model in models.items()
            if model is not None
        }


def _marks(chunks: Sequence[Any], embedding_width: int) -> Iterator[tuple[int, int]]:
    """Context row and binding id of every mark. Chunks follow each other in the context."""
    chunk_start = 0
    for chunk in chunks:
        dropped = 0
        for position, (token, *_) in enumerate(chunk):
            if isinstance(token, MarkedToken):
                yield chunk_start + position - dropped, token.binding_id
            # ComfyUI leaves out an embedding of another model's width; what follows moves up.
            elif isinstance(token, Tensor) and token.shape[-1] != embedding_width:
                dropped += 1
        chunk_start += len(chunk)


def _marking_tokenizer(host: Any, ends: Mapping[str, int]) -> Any:
    """A copy of ComfyUI's tokenizer whose inner tokenizers mark where nouns end."""
    twin = copy.copy(host)
    for name, inner in vars(host).items():
        if isinstance(inner, SDTokenizer):
            marking = copy.copy(inner)
            marking.tokenizer = _MarkingTokenizer(inner, ends)
            setattr(twin, name, marking)
    return twin


class _MarkingTokenizer:
    """Stands for the byte-pair tokenizer inside one of ComfyUI's while one prompt is tokenised."""

    def __init__(self, host: SDTokenizer, ends: Mapping[str, int]) -> None:
        self._host, self._ends = host, ends

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": mark_tokens(text, self._ends, self._ids, self._lengths)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host.tokenizer, name)

    def _ids(self, text: str) -> list[int]:
        return list(self._host.tokenizer(text)["input_ids"])

    def _lengths(self, ids: list[int]) -> list[int]:
        special = (self._host.start_token, self._host.end_token)
        words = ("" if each in special else self._host.inv_vocab[each] for each in ids)
        return [len(word.removesuffix("</w>")) for word in words]


def _same_tokens(plain: Tokens, marked: Tokens) -> bool:
    return plain.keys() == marked.keys() and all(
        len(a) == len(b) and all(map(_same_chunk, a, b))
        for a, b in ((plain[key], marked[key]) for key in plain)
    )


def _same_chunk(plain: Sequence[Any], marked: Sequence[Any]) -> bool:
    return len(plain) == len(marked) and all(map(_same_token, plain, marked))


def _same_token(plain: tuple[Any, ...], marked: tuple[Any, ...]) -> bool:
    """Same id, or both the vector of an embedding; same weight and word."""
    (token, *rest), (other, *other_rest) = plain, marked
    if isinstance(token, Tensor) or isinstance(other, Tensor):
        same = isinstance(token, Tensor) and isinstance(other, Tensor)
    else:
        same = token == other
    return same and rest == other_rest
