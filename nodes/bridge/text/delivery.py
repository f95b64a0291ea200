"""What is known of prompts between text encoder and sampler: their words, and which bindings got lost.

The words of a prompt are remembered with its context for as long as that lives: a conditioning keeps
exactly ComfyUI's entries. What a node throws away is noticed by what does not arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import WeakSet

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ....nested_core.binding import Binding
from ....nested_core.diagnosis import PromptText
from .conditioning import Conditioning, SlotMap, bound_ids, slot_map_of

# Bindings in the prompts that were tokenised since the last sampling, and the maps of those that
# were encoded, until they arrive at a sampler. Held weakly: an edited prompt's old conditioning is
# forgotten with ComfyUI's own cache entry.
_written: WeakSet[Binding] = WeakSet()
_on_the_way: WeakSet[SlotMap] = WeakSet()
# The words that each context was encoded from.
_texts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def note_written(bindings: Iterable[Binding]) -> None:
    """A prompt with these bindings was tokenised."""
    _written.update(bindings)


def note_encoded(slots: SlotMap) -> None:
    """A text encoder handed out this map of a prompt."""
    _on_the_way.add(slots)


def lost_bindings(
    bindings: Sequence[Binding], arriving: Sequence[Conditioning]
) -> tuple[Binding, ...]:
    """Those that were written in a prompt and that no conditioning of this sampling carries."""
    maps = (slot_map_of(each) for each in arriving)
    _on_the_way.difference_update([slots for slots in maps if slots is not None])
    written = {binding.id for binding in _written}
    lost = written.union(*(slots.ids for slots in _on_the_way)) - bound_ids(arriving)
    # A prompt without a map is told once: nothing here would notice that the user edits it.
    own = {binding.id for binding in bindings}
    _written.difference_update([binding for binding in _written if binding.id in own])
    return tuple(binding for binding in bindings if binding.id in lost)


def note_texts(context: Tensor, texts: Iterable[PromptText]) -> None:
    """A text encoder made this context of these words."""
    _texts[context] = tuple(dict.fromkeys(texts))


def texts_of(conditioning: Conditioning) -> tuple[PromptText, ...] | None:
    """The words of a conditioning; None where no text encoder of ours made it, or nobody can tell."""
    slots, context = slot_map_of(conditioning), conditioning.get("cross_attn")
    if slots is not None:
        context = slots.context
    return _texts.get(context) if isinstance(context, Tensor) else None
