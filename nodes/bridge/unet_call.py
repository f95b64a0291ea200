"""From conditionings to one call of the UNet, and back: who acts in which row, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...nested_core.binding import Binding
from ...nested_core.schedule import percent_at
from ...nested_core.sites import AttentionSite
from .arrival import Arrival, Sent, SentPrompt, as_told, by_content, without_places
from .compiling import is_compiled
from .conditioning import PLACES_KEY, REGIONS_KEY, SLOTS_KEY, slot_map_of, with_slots
from .family import blocks_of
from .kv_cache import SubjectIdentity, SubjectKeysValues
from .plan import Acting, Planner
from .sampling import SAMPLING_KEY, Sampling
from .site_call import SiteCall
from .site_patch import (
    CALL_KEY,
    current_call,
    is_open,
    put_up,
    put_up_compiled,
    resting,
    sites_beside,
    take_down,
    traced_apart,
)
from .surroundings import name_of, names_around
from .windows import Frame

_FUNCTION_WRAPPER = "model_function_wrapper"  # ComfyUI's name
Conditionings = list[list[dict[str, Any]] | None]


class UNetCalls:
    """What ComfyUI calls around each run of the UNet. Never changed afterwards."""

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

    def __deepcopy__(self, memo: dict[int, Any]) -> UNetCalls:
        return (
            self  # packs copy options with all the wrappers in them, and our subjects behind those
        )

    def predict_noise(
        self,
        executor: Callable[..., Any],
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any] = MappingProxyType({}),
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Remembers the pictures, of which other packs' windows will be parts."""
        _sampling_of(model_options).pictures = x
        return executor(x, timestep, model_options, *args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: Conditionings,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Gives every conditioning of this call a slot map, so that they can still be batched."""
        sampling = _sampling_of(model_options)
        sampling.sent = None
        around, name = _around(model, model_options)
        if around is not None:
            sampling.surroundings.add(name)
            wrapper = partial(self._call_around, around, model, sampling)
            model_options = {**model_options, _FUNCTION_WRAPPER: wrapper}
        if any(slot_map_of(each) is not None for group in conds for each in group or ()):
            is_direct = around is None and not _has_strangers(model_options)
            conds, sampling.sent = self._send(conds, x_in, model_options, sampling, is_direct)
        return executor(model, conds, x_in, timestep, model_options, *args, **kwargs)

    def _send(
        self,
        conds: Conditionings,
        latent: Tensor,
        model_options: Mapping[str, Any],
        sampling: Sampling,
        is_direct: bool,
    ) -> tuple[Conditionings, Sent]:
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

    def _call_around(
        self,
        around: Callable[..., Tensor],
        model: Any,
        sampling: Sampling,
        apply_model: Callable[..., Tensor],
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """Around a function that another pack put in front of the UNet.

        It may run the UNet's blocks by itself, so the subjects stand in its options already. Where
        it calls the UNet after all, these are taken down again and planned for what arrives there.
        """
        conditions, latent = dict(arguments["c"]), arguments["input"]
        options = take_down(conditions.get("transformer_options") or {})
        base_model = getattr(
            apply_model, "__self__", model
        )  # of several devices, the one that runs
        arrival = self._arrival(
            sampling,
            latent,
            conditions.get("c_crossattn"),
            conditions.get(SLOTS_KEY),
            conditions.get(REGIONS_KEY, ()),
            conditions.get(PLACES_KEY),
        )
        call = self._call(base_model, latent, arguments["timestep"], arrival, options, sampling)
        if not _is_bound(arrival):
            options.pop(SAMPLING_KEY, None)
        conditions["transformer_options"] = put_up(options, call) if call.groups else options
        return _run(call, partial(around, apply_model, {**arguments, "c": conditions}))

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Puts the subjects into the options for this call alone, where any is to act."""
        options = take_down(transformer_options or {})
        sampling = options.pop(SAMPLING_KEY, None) or Sampling.unknown()
        slots, masks = kwargs.pop(SLOTS_KEY, None), kwargs.pop(REGIONS_KEY, ())
        places = kwargs.pop(PLACES_KEY, None)
        base_model = executor.class_obj
        arrival = self._arrival(sampling, x, c_crossattn, slots, masks, places)
        run = partial(executor, x, t, c_concat, c_crossattn, control)
        # Where a function in front calls the UNet after all, what arrives here counts.
        with resting(current_call.get()):
            compiled = is_compiled(base_model, options)
            if not compiled and not _is_bound(arrival):
                return run(options, **kwargs)
            call = self._call(base_model, x, t, arrival, options, sampling)
            if compiled:
                with traced_apart():
                    return _run(call, partial(run, put_up_compiled(options, call), **kwargs))
            if not call.groups:
                return run(options, **kwargs)
            return _run(call, partial(run, put_up(options, call), **kwargs))

    def _arrival(
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
        if found is None:
            sampling.notices.say(
                f"a node around the UNet runs it with {len(x)} rows whose texts are none of those that "
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
        return found

    @property
    def _has_sequences(self) -> bool:
        return any(len(binding.subject.subjects) > 1 for binding in self._acting)

    def _call(
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
        if arrival is None or not _is_bound(arrival):
            return call
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


def _around(
    model: Any, model_options: Mapping[str, Any]
) -> tuple[Callable[..., Tensor] | None, str]:
    """The function that another pack put in front of the UNet, and its name."""
    around = model_options.get(_FUNCTION_WRAPPER)
    if around is not None:
        return around, name_of(around)
    name = name_of(model.apply_model)
    return (None if name.startswith("comfy.") else _straight), name


def _straight(apply_model: Callable[..., Tensor], arguments: Mapping[str, Any]) -> Tensor:
    return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])


def _has_strangers(model_options: Mapping[str, Any]) -> bool:
    """Whether another pack's wrappers stand on the way from here to our place before the UNet."""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
    kinds = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)
    return any(
        key != CALL_KEY and listed
        for kind in kinds
        for key, listed in wrappers.get(kind, {}).items()
    )


def _is_bound(arrival: Arrival | None) -> bool:
    return arrival is not None and any(any(row) for row in arrival.slots)


def _run(call: SiteCall, function: Callable[[], Tensor]) -> Tensor:
    """The function's result, the call being known while it runs and over when it ends."""
    before = current_call.set(call)
    try:
        out = function()
        if call.watch is not None and not call.is_over:
            call.watch.finish()
        return out
    finally:
        call.is_over = True
        current_call.reset(before)


def _sampling_of(model_options: Mapping[str, Any]) -> Sampling:
    return model_options.get("transformer_options", {}).get(SAMPLING_KEY) or Sampling.unknown()


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
