"""Noticing bound tokens that were written in a prompt and lost on the way to the sampler."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from weakref import WeakSet

from ...nested_core.binding import Binding
from .conditioning import Conditioning, SlotMap, bound_ids, slot_map_of

# Ids of bindings in the prompts that were tokenised since the last sampling ...
_written: set[int] = set()
# ... and the maps of those that were encoded, until they arrive at a sampler. Held weakly: an
# edited prompt's old conditioning is forgotten with ComfyUI's own cache entry.
_on_the_way: WeakSet[SlotMap] = WeakSet()


def note_written(binding_ids: Iterable[int]) -> None:
    """A prompt with these bindings was tokenised."""
    _written.update(binding_ids)


def note_encoded(slots: SlotMap) -> None:
    """A text encoder handed out this map of a prompt."""
    _on_the_way.add(slots)


def warn_of_lost_tokens(
    bindings: Iterable[Binding], conditionings: Mapping[str, Sequence[Conditioning]]
) -> None:
    """One warning, when sampling starts, naming the tokens that no conditioning carries."""
    bindings = tuple(bindings)
    arriving = [each for group in conditionings.values() for each in group]
    maps = (slot_map_of(each) for each in arriving)
    _on_the_way.difference_update([slots for slots in maps if slots is not None])
    lost = _written.union(*(slots.ids for slots in _on_the_way)) - bound_ids(arriving)
    # A prompt without a map is told once: nothing here would notice that the user edits it.
    _written.difference_update(binding.id for binding in bindings)
    tokens = [binding.token for binding in bindings if binding.id in lost]
    if tokens:
        logging.warning(
            "Nested Attention: %s is bound and written in a prompt, but no conditioning of this "
            "sampling carries it, so the subject does not act. Likely causes: a node between text "
            "encoder and sampler that keeps only its first input's extras (ConditioningConcat, "
            "ConditioningAverage: bind in 'conditioning_to', or use ConditioningCombine), a text "
            "node that encodes without them (PhotoMaker Encode), or two tokens at one place of "
            "SDXL's two prompts. Harmless if that prompt belongs to another sampler.",
            ", ".join(tokens),
        )
