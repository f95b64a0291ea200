"""What became of every binding in one sampling, said on its node and in the log.

When sampling starts it is known which subjects cannot act and why: no prompt says their word, or
a node lost it. When it ends it is known which have acted, where and how much.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from ....nested_core import diagnosis
from ....nested_core.binding import Binding
from ....nested_core.call.rules import Rules
from ....nested_core.diagnosis import PromptText
from ....nested_core.sites import Site
from ..notices import Notices
from ..text.conditioning import Conditioning, bound_ids, slot_map_of
from ..text.delivery import lost_bindings, texts_of
from .sampling import Sampling

_LISTED = 4  # names of functions in a sentence

# Kinds of sentences, said while the UNet runs, after which a subject that did not act is no riddle.
_HINDRANCES = ("shape", "rows", "places", "replaced")


class Report:
    """On the bindings of one model in one sampling."""

    def __init__(
        self,
        rules: Rules,
        conds: Mapping[str, Sequence[Conditioning]],
        notices: Notices,
    ) -> None:
        self._bindings, self._sites, self._notices = rules.bindings, rules.sites, notices
        self._arriving = [each for group in conds.values() for each in group]
        self._arrived = bound_ids(self._arriving)
        texts = [texts_of(each) for each in self._arriving]
        self._prompts = list(dict.fromkeys(text for found in texts for text in found or ()))
        self._strangers = sum(
            found is None and not _is_empty(each.get("cross_attn"))
            for found, each in zip(texts, self._arriving, strict=True)
        )

    def begin(self) -> None:
        """Says which subjects cannot act, and which words of the prompts nobody knows."""
        missing = [each for each in self._bindings if each.id not in self._arrived]
        strange = [each for each in missing if each.token in self._strange_tokens()]
        for binding in strange:
            self._notices.say(
                f"{binding.token} does not act: the {binding.token} of the prompt is another subject's. "
                "MODEL and CLIP come from Apply nodes with different bindings: take both from the same "
                "one.",
                [binding.node],
            )
        missing = [each for each in missing if each not in strange]
        lost = [each for each in lost_bindings(self._bindings, self._arriving) if each in missing]
        self._say_lost(lost)
        # Of several subjects a prompt may well leave one out; all of them it hardly means to.
        is_meant = len(missing) - len(lost) < len(self._bindings)
        for binding in missing:
            if binding not in lost:
                self._say_missing(binding, is_meant)
        tokens = [binding.token for binding in self._bindings]
        for prompt in self._prompts:
            self._say_unknown_words(prompt, tokens)
        self._say_changed()

    def _strange_tokens(self) -> set[str]:
        """Tokens of the prompts that are bound to subjects which this model does not know."""
        known = {binding.id for binding in self._bindings}
        maps = [slots for slots in map(slot_map_of, self._arriving) if slots is not None]
        return {token for slots in maps for each, token in slots.names.items() if each not in known}

    def _say_lost(self, lost: Sequence[Binding]) -> None:
        if lost:
            self._notices.say(
                f"{', '.join(each.token for each in lost)} is bound and written in a prompt, but no "
                "conditioning of this sampling carries it, so the subject does not act. Likely causes: "
                "a node between text encoder and sampler that keeps only its first input's extras "
                "(ConditioningConcat, ConditioningAverage: bind in 'conditioning_to', or use "
                "ConditioningCombine), a text node that encodes without them (PhotoMaker Encode, nodes "
                "that weight words in their own way), a prompt encoded with the checkpoint's own CLIP, or "
                "two tokens at one place of SDXL's two prompts. Harmless if that prompt belongs to another "
                "sampler.",
                [each.node for each in lost],
            )

    def _say_missing(self, binding: Binding, is_meant: bool) -> None:
        token = binding.token
        similar = diagnosis.similar_in([each.text for each in self._prompts], token)
        is_meant = is_meant and similar is None
        why = diagnosis.why_not_written(token, similar)
        if similar is None and self._strangers:
            why = (
                f"{self._strangers} of {len(self._arriving)} prompts of this sampling were not encoded "
                "with the CLIP of Apply Nested Attention, or lost on their way what came with it, and "
                f"no other says {token}. Encode the prompt that says it with that CLIP"
            )
        level = logging.INFO if is_meant else logging.WARNING
        self._notices.say(f"{token} does not act: {why}.", [binding.node], level)

    def _say_unknown_words(self, prompt: PromptText, tokens: Sequence[str]) -> None:
        known = [*tokens, *(token for token, _ in prompt.bound)]
        for word in diagnosis.unknown_words(prompt.text, known):
            self._notices.say(diagnosis.unknown_word_sentence(word, tokens), [prompt.node])

    def _say_changed(self) -> None:
        for each in self._arriving:
            slots, context = slot_map_of(each), each.get("cross_attn")
            if slots is None or context is None or _is_empty(context):
                continue
            prompts = texts_of(each) or ()
            if slots.is_of(context) and not any(prompt.changed for prompt in prompts):
                continue
            self._notices.say(
                f"the text that is sampled is not the prompt in which {', '.join(slots.names.values())} "
                "was bound: a node on its way cuts or mixes words (cut attention, ConditioningAverage). "
                "The subject acts at the place of its noun. If the picture is wrong, encode this prompt "
                "with CLIP Text Encode.",
                [prompt.node for prompt in prompts],
            )

    def end(self, sampling: Sampling) -> None:
        """Says who has acted, where and how much, and who has not although the prompt says so."""
        for binding in self._bindings:
            if binding.id not in self._arrived:
                continue
            tally = sampling.tallies.get(binding.id)
            if tally is None:
                why = self._why_not_acted(binding, sampling)
                level = logging.INFO if why is None else logging.WARNING
                text = f"{binding.token} did not act: {why or 'for the reason said above.'}"
            else:
                level = logging.INFO
                steps, share = tally.steps, tally.mean_attention()
                text = diagnosis.acted(
                    binding.token, len(tally.rows), steps, sampling.num_steps, share
                )
            self._notices.say(text, [binding.node], level)
        self._say_unreached(sampling)

    def _why_not_acted(self, binding: Binding, sampling: Sampling) -> str | None:
        """The likely cause; None where it was told when it happened."""
        if not binding.has_effect:
            return "its strength is 0 (fidelity 0 also makes it so)."
        if not self._sites[binding.id]:
            return "its 'sites' leave no layer of this model."
        if self._is_zeroed(binding):
            return "the prompt that says it was emptied (ConditioningZeroOut)."
        if self._notices.has_said(*_HINDRANCES):
            return None
        if not sampling.reached and sampling.planned:
            return (
                "its prompt arrived at the UNet, but no cross-attention of it was run in a way that a "
                f"patch could see. What stands around it: {_around(sampling)}. Remove the node that "
                "brought it."
            )
        part = f"{binding.start_percent:g} to {binding.end_percent:g}"
        if binding.id not in sampling.planned and part != "0 to 1":
            return (
                f"its part of the sampling (start_percent and end_percent: {part}) has no step in this "
                "sampler. Widen it, or give this sampler a binding of its own by another Apply."
            )
        return (
            "no call of the UNet ran its prompt where it may act (timestep ranges, areas or tiles of "
            "another node can leave it out)."
        )

    def _is_zeroed(self, binding: Binding) -> bool:
        contexts = [
            each.get("cross_attn")
            for each in self._arriving
            if (slots := slot_map_of(each)) is not None and binding.id in slots.ids
        ]
        return all(map(_is_empty, contexts))

    def _say_unreached(self, sampling: Sampling) -> None:
        """Where subjects acted in some layers and never in others."""
        if not sampling.tallies or self._notices.has_said("replaced"):
            return
        planned = frozenset[Site]().union(*(self._sites[each] for each in sampling.tallies))
        unreached = planned - sampling.reached
        if unreached:
            self._notices.say(
                f"the subjects acted in {len(planned & sampling.reached)} of {len(planned)} layers; the "
                "others were never run in a way that a patch could see. What stands around them: "
                f"{_around(sampling)}."
            )


def _around(sampling: Sampling) -> str:
    return ", ".join(sorted(sampling.surroundings)[:_LISTED]) or "another node"


def _is_empty(context: Tensor | None) -> bool:
    """Whether there is no prompt: ConditioningZeroOut empties one."""
    return context is None or not bool(context.any())
