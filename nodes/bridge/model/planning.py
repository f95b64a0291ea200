"""Who acts in one call of the UNet: from what was sent and what arrives to the plan of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from torch import Tensor

from ....nested_core.binding import Binding
from ....nested_core.families.unet_sites import AttentionSite
from ....nested_core.schedule import percent_at
from ..families.unet import blocks_of
from ..families.unet_patches import is_open, sites_beside
from ..text.conditioning import SLOTS_KEY, slot_map_of, with_slots
from .arrival import Arrival, Sent, SentPrompt, as_told, by_content, without_places
from .kv_cache import SubjectIdentity, SubjectKeysValues
from .plan import Acting, Planner
from .sampling import Sampling
from .site_call import SiteCall
from .surroundings import name_of, names_around
from .windows import Frame

Conditionings = list[list[dict[str, Any]] | None]


class Planning:
    """The bindings of one model, and what they mean for a call of its UNet. Never changed afterwards."""

    def __init__(
        self,
        bindings: Sequence[Binding],
        sites: Mapping[int, frozenset[AttentionSite]],
        separation: float,
    ) -> None:
        self._sites, self._separation = sites, separation
        self._acting = tuple(binding for binding in bindings if binding.has_effect)
        self._masked = tuple(binding for binding in self._acting if binding.mask is not None)
        self._is_scheduled = any(_is_scheduled(each) for each in self._acting)

    def send(
        self,
        conds: Conditionings,
        latent: Tensor,
        model_options: Mapping[str, Any],
        sampling: Sampling,
        is_direct: bool,
    ) -> tuple[Conditionings, Sent]:
        """Conditionings with a slot map each, so that they can still be batched, and what they say."""
        frame = Frame.of_call(latent, model_options, sampling.pictures)
        masks = tuple(binding.mask[:, None] for binding in self._masked if binding.mask is not None)
        unbound, prompts, sent = count(-1, -1), list[SentPrompt](), Conditionings()
        for group in conds:
            mapped = None if group is None else list[dict[str, Any]]()
            for each in group or ():
                slots = slot_map_of(each)
                number = next(unbound) if slots is None else sampling.number_of(each, slots)
                found = with_slots(each, number, masks, frame)
                if found is not each:
                    prompts.append(_prompt(number, found["model_conds"]))
                assert mapped is not None
                mapped.append(found)
            sent.append(mapped)
        return sent, Sent(latent, frame, tuple(prompts), masks, is_direct)

    def arrival(
        self,
        sampling: Sampling,
        x: Tensor,
        context: Tensor | None,
        slots: Tensor | None,
        masks: Sequence[Tensor],
        places: Tensor | None,
    ) -> Arrival | None:
        """What is known of the rows that have come here."""
        told, sent = as_told(x, slots, masks, places), sampling.sent
        if sent is None:
            return told or without_places(slots, len(x))
        if told is not None and not sent.is_direct:
            told = sent.checked(told, x, context)
        if told is not None:
            return told
        found = by_content(sent, x, context) or without_places(slots, len(x))
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
        elif found.places is None and (self._masked or self._separation or self._has_sequences):
            sampling.notices.say(
                "a node around the UNet gives it other pictures or parts of pictures than were sent, "
                "without saying which. There the subjects act, but masks and separation rest, and of "
                "several subjects for several pictures none acts. Remove that node to have them.",
                kind="places",
            )

    @property
    def _has_sequences(self) -> bool:
        return any(len(binding.subject.subjects) > 1 for binding in self._acting)

    def call(
        self,
        base_model: Any,
        x: Tensor,
        t: Tensor,
        arrival: Arrival | None,
        options: Mapping[str, Any],
        sampling: Sampling,
    ) -> SiteCall:
        """The plan of one call; without rows that a subject acts in, nothing is planned."""
        foreign = options.get("patches_replace", {}).get("attn2", {})
        blocks = blocks_of(base_model.diffusion_model)
        layers = {site: block.attn2 for site, block in blocks.items() if is_open(block.attn2)}
        call = SiteCall(
            num_rows=len(x),
            num_text_tokens=len(arrival.slots[0]) if arrival is not None else 0,
            foreign=foreign,
            say=sampling.notices.say,
            size=(x.shape[-2], x.shape[-1]),
            layers=layers,
            beside=sites_beside(layers, foreign),
            reached=sampling.reached,
        )
        if not is_bound(arrival):
            return call
        assert arrival is not None
        for site in blocks.keys() - layers.keys():
            sampling.notices.say(
                f"the attention layer {site.text} was replaced by {name_of(blocks[site].attn2)}, in "
                "which no subject can act. Remove the node that does so, or keep it from that layer.",
                kind="replaced",
            )
        noise_level = self._noise_level(sampling, t, options)
        acting = self._acting_now(arrival, base_model.model_sampling, noise_level, x)
        loaded = _loaded_keys_values(base_model)
        planner = Planner(acting, loaded, arrival, x.device, sampling.maps, self._separation)
        call.subjects, call.groups = planner.plan()
        if call.groups:
            call.watch = sampling.watch(noise_level, arrival.places)
            sampling.planned.update(each.binding.id for each in call.subjects)
            if not sampling.surroundings:
                sampling.surroundings.update(names_around(base_model, blocks.values(), options))
        return call

    def _noise_level(
        self, sampling: Sampling, t: Tensor, options: Mapping[str, Any]
    ) -> float | None:
        """Of this call, where somebody needs it: the one read of a device tensor."""
        if self._is_scheduled or sampling.recordings:
            return float(options.get("sigmas", t).flatten()[0])
        return None

    def _acting_now(
        self, arrival: Arrival, model_sampling: Any, noise_level: float | None, x: Tensor
    ) -> dict[int, Acting]:
        masks = arrival.masks if arrival.masks is not None else ()
        regions = dict(zip([each.id for each in self._masked], masks, strict=False))
        presences = _presences(self._acting, model_sampling, noise_level)
        return {
            each.id: Acting(
                each,
                self._sites[each.id],
                presences[each.id],
                regions[each.id].to(x.device) if each.id in regions else None,
            )
            for each in self._acting
            if presences[each.id] > 0.0
        }


def is_bound(arrival: Arrival | None) -> bool:
    """Whether some row contains a bound token."""
    return arrival is not None and any(any(row) for row in arrival.slots)


def _prompt(number: int, model_conds: Mapping[str, Any]) -> SentPrompt:
    slots = model_conds[SLOTS_KEY].cond
    return SentPrompt(number, model_conds["c_crossattn"].cond, tuple(slots[0, :, 0].tolist()))


def _is_scheduled(binding: Binding) -> bool:
    part = (binding.schedule, binding.start_percent, binding.end_percent)
    return part != ("constant", 0.0, 1.0)


def _presences(
    bindings: Iterable[Binding], sampling: Any, noise_level: float | None
) -> dict[int, float]:
    """How much each binding acts now, in [0, 1]; without a noise level, all of them fully."""
    return {
        each.id: 1.0 if noise_level is None else _presence(each, sampling, noise_level)
        for each in bindings
    }


def _presence(binding: Binding, sampling: Any, noise_level: float) -> float:
    # By noise levels first: both ends belong to a binding's part, whatever a percent rounds to.
    first, last = (
        sampling.percent_to_sigma(each) for each in (binding.start_percent, binding.end_percent)
    )
    if not last <= noise_level <= first:
        return 0.0
    if binding.schedule == "constant":
        return 1.0
    percent = percent_at(noise_level, sampling.percent_to_sigma)
    return binding.presence_at(min(max(percent, binding.start_percent), binding.end_percent))


def _loaded_keys_values(base_model: Any) -> dict[SubjectIdentity, SubjectKeysValues]:
    """Keys and values on the device of the running model, by whose they are."""
    patchers = base_model.current_patcher.get_additional_models_with_key("nested_attention")
    return {patcher.model.identity: patcher.model for patcher in patchers}
