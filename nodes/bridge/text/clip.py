"""The text encoder that reads nouns where a prompt has bound tokens, and remembers where."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias, cast

import torch
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ....nested_core.binding import Binding, merge_bindings
from ....nested_core.diagnosis import PromptText
from ....nested_core.families import DEFAULT_FAMILY, FAMILIES
from ....nested_core.prompt import MarkedPrompt, MarkedToken, mark_prompt, mark_tokens
from ..names import name_of
from ..notices import current_node, tell
from .conditioning import SLOTS_KEY, SlotMap, doubled, signs_of_doubled
from .delivery import note_encoded, note_texts, note_written
from .prompt_start import texts_in, with_starts
from .rows import marked_rows, num_text_rows

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
        if not isinstance(text, str):
            return super().tokenize(text, return_word_ids, **kwargs)
        prompt = mark_prompt(text, self.nested_bindings)
        tokens = super().tokenize(prompt.plain, return_word_ids, **kwargs)
        if prompt.ends:
            written = set(prompt.ends.values())
            marked = self._tokenize_marked(prompt, return_word_ids, kwargs)
            if _same_tokens(tokens, marked) and written <= _marked_ids(marked):
                note_written(each for each in self.nested_bindings if each.id in written)
                tokens = marked
            else:
                self._tell_unbound(text, prompt)
        known = tuple((binding.token, binding.id) for binding in self.nested_bindings)
        return with_starts(tokens, PromptText(text, current_node(), known))

    def _tell_unbound(self, text: str, prompt: MarkedPrompt) -> None:
        names = {binding.id: binding.token for binding in self.nested_bindings}
        tokens = ", ".join(dict.fromkeys(names[each] for each in prompt.ends.values()))
        if any(syntax in prompt.plain for syntax in ("(", ")", "\\", "embedding:")):
            why = (
                f"the bound tokens of this prompt ({tokens}) stand where they change how it is read "
                f"(inside a weight or an embedding's name); they are left unbound: {text!r}"
            )
        else:
            why = (
                f"the text encoder reads prompts in a way of its own ({self._reader()}), in which "
                f"{tokens} cannot be followed; they are left unbound: {text!r}. Encode this prompt "
                "without the node that brought it."
            )
        tell(why, [current_node()])

    def _reader(self) -> str:
        """Whoever reads prompts here, by name: another pack's where there is one."""
        own = type(self).__mro__[type(self).__mro__.index(_BoundCLIP) + 1]
        inner = [getattr(each, "tokenizer", each) for each in vars(self.tokenizer).values()]
        names = [name_of(each) for each in (own, self.tokenizer, *inner)]
        foreign = [name for name in names if not name.startswith(("comfy.", "transformers."))]
        return next((name for name in foreign if not name.startswith("builtins.")), names[0])

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
        encoded: Any = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if return_dict:
            self._attach(encoded, encoded["cond"], tokens)
        return encoded

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **kwargs: Any) -> Any:
        conditioning = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for context, extras in conditioning:
            self._attach(extras, context, tokens)
        return conditioning

    def _attach(self, extras: dict[str, Any], context: Tensor, tokens: Tokens) -> None:
        """Gives a conditioning its slot map and its words; a prompt without a bound token has no map."""
        note_texts(context, texts_in(tokens))
        if SLOTS_KEY in extras.get("model_conds", {}):
            return
        slots = self._slots(tokens, context)
        if slots is not None:
            extras["model_conds"] = {**extras.get("model_conds", {}), SLOTS_KEY: slots}
            note_encoded(slots)

    def _slots(self, tokens: Tokens, context: Tensor) -> SlotMap | None:
        """Which rows of the context are bound; where two tokenizers mark one differently, the later wins."""
        length = max((sum(map(len, chunks)) for chunks in tokens.values()), default=0)
        signs = signs_of_doubled(context) if context.shape[1] == 2 * length else None
        num_rows = num_text_rows(tokens, context.shape[1] if signs is None else length)
        slots = torch.zeros(num_rows, dtype=torch.int32)
        for row, binding_id in marked_rows(tokens, self.cond_stage_model, num_rows):
            slots[row] = binding_id
        found = set(slots.tolist())
        names = {each.id: each.token for each in self.nested_bindings if each.id in found}
        as_map = slots[None, :, None]
        if signs is not None:
            as_map = doubled(as_map, signs)
        return SlotMap(as_map, names, context) if bool(slots.any()) else None


def _marked_ids(tokens: Tokens) -> set[int]:
    return {
        token.binding_id
        for chunks in tokens.values()
        for chunk in chunks
        for token, *_ in chunk
        if isinstance(token, MarkedToken)
    }


def _marking_tokenizer(host: Any, ends: Mapping[str, int]) -> Any:
    """A copy of ComfyUI's tokenizer whose inner tokenizers mark where nouns end."""
    twin = copy.copy(host)
    for name, inner in vars(host).items():
        if isinstance(inner, SDTokenizer):
            marking = copy.copy(inner)
            marking.tokenizer = _MarkingTokenizer(inner, ends, name.removeprefix("clip_"))
            setattr(twin, name, marking)
    return twin


class _MarkingTokenizer:
    """Stands for the byte-pair tokenizer inside one of ComfyUI's while one prompt is tokenised."""

    def __init__(self, host: SDTokenizer, ends: Mapping[str, int], name: str) -> None:
        self._host, self._ends, self._name = host, ends, name
        families = [each for each in FAMILIES.values() if name in each.tokenizers]
        self._family = families[0] if families else DEFAULT_FAMILY

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": mark_tokens(text, self._ends, self._ids, self._lengths)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host.tokenizer, name)

    def _ids(self, text: str) -> list[int]:
        return list(self._host.tokenizer(text)["input_ids"])

    def _lengths(self, ids: list[int]) -> list[int]:
        special = (self._host.start_token, self._host.end_token)
        vocabulary = self._host.inv_vocab
        return [
            0 if each in special else self._family.num_characters(self._name, vocabulary[each])
            for each in ids
        ]


def _same_tokens(plain: Tokens, marked: Tokens) -> bool:
    """Same ids, or both the vector of an embedding; same weights and words."""
    return _without_vectors(plain) == _without_vectors(marked)


def _without_vectors(tokens: Tokens) -> Tokens:
    return {
        name: [
            [(None if isinstance(token, Tensor) else token, *rest) for token, *rest in chunk]
            for chunk in chunks
        ]
        for name, chunks in tokens.items()
    }
