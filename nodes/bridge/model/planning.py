"""Who acts in one call of the model: from what was sent and what arrives to the plan of its sites."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from torch import Tensor

from ....nested_core.call.arrival import (
    Arrival,
    RowFacts,
    Sent,
    SentPrompt,
    as_told,
    by_content,
    without_places,
)
from ....nested_core.call.keys_values import SubjectIdentity, SubjectKeysValues
from ....nested_core.call.places import Frame
from ....nested_core.call.plan import CallPlan
from ....nested_core.call.planning import plan_call
from ....nested_core.call.rules import Moment, Rules
from ..families.host_family import HostFamily
from ..families.model_call import ModelCall
from ..text.conditioning import SLOTS_KEY, slot_map_of, with_slots
from .sampling import Sampling
from .surroundings import names_around
from .windows import told_window

Conditionings = list[list[dict[str, Any]] | None]


class Planning:
    """The bindings of one model, and what they mean for a call of it. Never changed afterwards."""

    def __init__(self, rules: Rules, host: HostFamily) -> None:
        self._rules, self._host = rules, host

    def send(
        self,
        conds: Conditionings,
        latent: Tensor,
        model_options: Mapping[str, Any],
        sampling: Sampling,
        is_direct: bool,
    ) -> tuple[Conditionings, Sent]:
        """Conditionings with a slot map each, so that they can still be batched, and what they say."""
        frame = Frame.of_call(latent, told_window(model_options), sampling.pictures)
        masks = sampling.masks_of_frames(self._rules.masks)
        unbound, prompts = count(-1, -1), list[SentPrompt]()

        def mapped(each: dict[str, Any]) -> dict[str, Any]:
            slots = slot_map_of(each)
            number = next(unbound) if slots is None else sampling.number_of(each, slots)
            found = with_slots(each, number, masks, frame)
            if found is not each:
                prompts.append(_prompt(number, found["model_conds"]))
            return found

        sent = [None if group is None else [mapped(each) for each in group] for group in conds]
        return sent, Sent(latent, frame, tuple(prompts), masks, is_direct)

    def arrival(
        self, sampling: Sampling, x: Tensor, context: Tensor | None, facts: RowFacts
    ) -> Arrival | None:
        """What is known of the rows that have come here."""
        told, sent = as_told(x, facts), sampling.sent
        if sent is None:
            return told or without_places(facts, len(x))
        if told is not None and not sent.is_direct:
            told = sent.checked(told, x, context)
        if told is not None:
            return told
        found = by_content(sent, x, context) or without_places(facts, len(x))
        self.say_lost(found, len(x), sampling)
        return found

    def say_lost(self, found: Arrival | None, num_rows: int, sampling: Sampling) -> None:
        """Says what cannot be known of rows that another pack has changed."""
        if found is None:
            sampling.notices.say(
                f"a node around the UNet runs it with {num_rows} rows whose texts are none of those that "
                "were sent, so nobody can tell which subject belongs where; there none acts. Remove "
                "that node.",
                kind="rows",
            )
        elif found.places is None and self._rules.is_local:
            sampling.notices.say(
                "a node around the UNet gives it other pictures or parts of pictures than were sent, "
                "without saying which. There the subjects act, but masks and separation rest, and of "
                "several subjects for several pictures none acts. Remove that node to have them.",
                kind="places",
            )

    def call(
        self,
        base_model: Any,
        x: Tensor,
        t: Tensor,
        arrival: Arrival | None,
        options: Mapping[str, Any],
        conditions: Mapping[str, Any],
        sampling: Sampling,
    ) -> ModelCall:
        """The plan of one call; without rows that a subject acts in, nothing is planned.

        Args:
            conditions: what else the model is called with, by name.
        """
        plan, watch = CallPlan(), None
        if arrival is not None and is_bound(arrival):
            moment = self._moment(sampling, t, options, base_model.model_sampling)
            loaded = _loaded_keys_values(base_model)
            plan = plan_call(self._rules, x, arrival, moment, loaded, sampling.maps)
        if arrival is not None and plan.groups:
            watch = sampling.watch(moment.noise_level, arrival.places)
            sampling.planned.update(each.binding.id for each in plan.subjects)
            if not sampling.surroundings:
                inside = self._host.functions(base_model.diffusion_model)
                sampling.surroundings.update(names_around(base_model, inside, options))
        say, reached = sampling.notices.say, sampling.reached
        return self._host.call(base_model, x, options, conditions, plan, say, reached, watch)

    def _moment(
        self, sampling: Sampling, t: Tensor, options: Mapping[str, Any], model_sampling: Any
    ) -> Moment:
        """When this call is, where somebody needs it: the one read of a device tensor."""
        noise_level = None
        if self._rules.is_scheduled or sampling.recordings:
            noise_level = float(options.get("sigmas", t).flatten()[0])
        return Moment(noise_level, model_sampling.percent_to_sigma)


def is_bound(arrival: Arrival | None) -> bool:
    """Whether some row contains a bound token."""
    return arrival is not None and any(any(row) for row in arrival.slots)


def _prompt(number: int, model_conds: Mapping[str, Any]) -> SentPrompt:
    slots = model_conds[SLOTS_KEY].cond
    return SentPrompt(number, model_conds["c_crossattn"].cond, tuple(slots[0, :, 0].tolist()))


def _loaded_keys_values(base_model: Any) -> dict[SubjectIdentity, SubjectKeysValues]:
    """Keys and values on the device of the running model, by whose they are."""
    patchers = base_model.current_patcher.get_additional_models_with_key("nested_attention")
    return {patcher.model.identity: patcher.model for patcher in patchers}
