"""The way into the model: wrappers on a clone, and nothing in `patches_replace` until a call runs.

A patch put into `patches_replace` at Apply would be overwritten by a later node's on the same key,
or hide one on the whole block. So every site is wrapped around whatever stands there when the UNet
is called, on a copy of the options that ends with the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...nested_core.binding import Binding, merge_bindings
from ...nested_core.schedule import percent_at
from ...nested_core.sites import AttentionSite
from .conditioning import (
    PLACES_KEY,
    REGIONS_KEY,
    SLOTS_KEY,
    Place,
    bound_ids,
    slot_map_of,
    with_slots,
)
from .delivery import warn_of_lost_tokens
from .family import check_encoder_fits, site_dims
from .kv_cache import SubjectIdentity, SubjectKeysValues, keys_and_values
from .plan import Acting, Planner
from .recording import recorders_of
from .sampling import SAMPLING_KEY, Sampling
from .site_call import CALL_KEY, SiteCall, warn_once_logger
from .site_patch import site_patches, traced_apart

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_KEY = "nested_attention"


def bind_model(
    model: ModelPatcher, bindings: Sequence[Binding], separation: float = 0.0
) -> ModelPatcher:
    """A clone of the model in which these bindings act, besides those of an earlier Apply.

    Of two Apply nodes' separations the greater counts.

    Raises:
        HostError: the model is of no supported family, or an encoder was made for another one.
        SiteError: a binding's selector names no site of this model.
    """
    dims = site_dims(model)
    for binding in bindings:
        check_encoder_fits(binding.subject.encoder, dims)
    earlier = model.get_attachment(_KEY)
    merged = merge_bindings(earlier.bindings if earlier else (), bindings)
    bound = BoundModel(merged, dims, max(separation, earlier.separation if earlier else 0.0))
    clone = model.clone()
    clone.set_attachments(_KEY, bound)
    for kind, wrapper in bound.wrappers.items():
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    return clone


class BoundModel:
    """The bindings of one Apply, and what ComfyUI calls around sampling. Never changed afterwards."""

    def __init__(
        self,
        bindings: Sequence[Binding],
        sites: Iterable[AttentionSite],
        separation: float = 0.0,
    ) -> None:
        self.bindings, self.separation = tuple(bindings), separation
        self._all_sites = tuple(sites)
        self._sites = {binding.id: binding.sites.select(self._all_sites) for binding in bindings}
        self._acting = tuple(binding for binding in bindings if binding.has_effect)
        self._masked = tuple(binding for binding in self._acting if binding.mask is not None)
        self._is_scheduled = any(_is_scheduled(each) for each in self._acting)
        self._warn_once = warn_once_logger()

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """What to register, by ComfyUI's kind of wrapper."""
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.CALC_COND_BATCH: self.calc_cond_batch,
            WrappersMP.APPLY_MODEL: self.apply_model,
        }

    def outer_sample(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Gives this sampling a state of its own; ComfyUI drops the options when it ends."""
        recorders = recorders_of(executor.class_obj.model_patcher)
        state = Sampling(sigmas.tolist(), self.separation > 0.0, recorders)
        options = executor.class_obj.model_options.setdefault("transformer_options", {})
        options[SAMPLING_KEY] = state
        for each in recorders:
            callback = each.with_preview(callback)
        return executor(
            noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs
        )

    def prepare_sampling(
        self,
        executor: Callable[..., Any],
        model: ModelPatcher,
        noise_shape: Sequence[int],
        conds: Mapping[str, list[dict[str, Any]]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Projects keys and values before ComfyUI counts and loads what this sampling needs."""
        used = bound_ids(each for group in conds.values() for each in group)
        cast_dtype = cast("torch.dtype | None", model.get_model_object("manual_cast_dtype"))
        dtype = cast_dtype or model.model.get_dtype()
        model.set_additional_models(
            _KEY,
            [
                keys_and_values(subject, self._sites[binding.id], model.load_device, dtype)
                for binding in self._acting
                if binding.id in used
                for subject in binding.subject.subjects
            ],
        )
        warn_of_lost_tokens(self.bindings, conds)
        return executor(model, noise_shape, conds, *args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: list[list[dict[str, Any]] | None],
        x_in: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Gives every conditioning of this call a slot map, so that they can still be batched."""
        if any(slot_map_of(each) is not None for group in conds for each in group or ()):
            masks = [binding.mask[:, None] for binding in self._masked if binding.mask is not None]
            latent_size = (x_in.shape[-2], x_in.shape[-1])
            numbers = count()
            conds = [
                None
                if group is None
                else [with_slots(each, next(numbers), masks, latent_size) for each in group]
                for group in conds
            ]
        return executor(model, conds, x_in, *args, **kwargs)

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
        """Wraps every site for this call alone, on a copy of the options."""
        options = dict(transformer_options or {})
        slots, masks = kwargs.pop(SLOTS_KEY, None), kwargs.pop(REGIONS_KEY, ())
        places = kwargs.pop(PLACES_KEY, None)
        sampling = options.pop(SAMPLING_KEY, None)
        call = SiteCall(
            num_rows=x.shape[0],
            num_text_tokens=0 if slots is None else slots.shape[1],
            foreign=options.get("patches_replace", {}).get("attn2", {}),
            warn_once=self._warn_once,
        )
        if slots is not None and places is not None and self._have_a_row_each(x, (slots, *masks)):
            noise_level = self._noise_level(sampling, t, options)
            where = [Place(*row) for row in places.tolist()]
            self._plan(call, executor.class_obj, x, slots, masks, where, sampling, noise_level)
        options[CALL_KEY] = call
        # Every site, also in calls without a bound row: a compiled UNet remembers which sites were
        # patched when it was traced.
        replace = options.get("patches_replace", {})
        options["patches_replace"] = {
            **replace,
            "attn2": {**call.foreign, **site_patches(self._all_sites)},
        }
        with traced_apart():
            out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if call.watch is not None:
            call.watch.finish()
        return out

    def _noise_level(
        self, sampling: Sampling | None, t: Tensor, options: Mapping[str, Any]
    ) -> float | None:
        """Of this call, where somebody needs it: the one read of a device tensor."""
        if self._is_scheduled or (sampling is not None and sampling.recorders):
            return float(options.get("sigmas", t).flatten()[0])
        return None

    def _plan(
        self,
        call: SiteCall,
        base_model: Any,
        x: Tensor,
        slots: Tensor,
        masks: Sequence[Tensor],
        places: Sequence[Place],
        sampling: Sampling | None,
        noise_level: float | None,
    ) -> None:
        """Tells the call who acts where."""
        regions = dict(zip([each.id for each in self._masked], masks, strict=False))
        presences = _presences(self._acting, base_model.model_sampling, noise_level)
        acting = {
            each.id: Acting(
                each,
                self._sites[each.id],
                presences[each.id],
                regions[each.id].to(x.device) if each.id in regions else None,
            )
            for each in self._acting
            if presences[each.id] > 0.0
        }
        loaded = _loaded_keys_values(base_model)
        maps = None if sampling is None else sampling.maps
        planner = Planner(acting, loaded, places, x.device, maps, self.separation)
        call.subjects, call.groups = planner.plan(slots[..., 0].cpu())
        if call.groups and sampling is not None:
            call.watch = sampling.watch(noise_level, places)

    def _have_a_row_each(self, x: Tensor, conditionings: Sequence[Tensor]) -> bool:
        found = next((len(each) for each in conditionings if len(each) != len(x)), None)
        if found is None:
            return True
        self._warn_once(
            f"Nested Attention: a node around the UNet runs it with {len(x)} rows where the prompts have "
            f"{found}, as tiled sampling does; there the subjects do not act. Remove that node. If it "
            "only splits the batch, removing the bindings' masks is enough."
        )
        return False


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
    patchers = base_model.current_patcher.get_additional_models_with_key(_KEY)
    return {patcher.model.identity: patcher.model for patcher in patchers}
