"""The way into the model: wrappers on a clone, and nothing in `patches_replace` until a call runs.

A patch put into `patches_replace` at Apply would be overwritten by a later node's on the same key,
or hide one on the whole block. So every site is wrapped around whatever stands there when the UNet
is called, on a copy of the options that ends with the call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...nested_core.binding import Binding, merge_bindings
from ...nested_core.sites import AttentionSite
from .conditioning import REGIONS_KEY, SLOTS_KEY, bound_ids, slot_map_of, with_slots
from .delivery import warn_of_lost_tokens
from .family import check_encoder_fits, site_dims
from .kv_cache import SubjectKeysValues, keys_and_values
from .site_call import (
    CALL_KEY,
    ActiveSubject,
    Patch,
    Rows,
    SiteCall,
    plan_groups,
    warn_once_logger,
)

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_KEY = "nested_attention"


def bind_model(model: ModelPatcher, bindings: Sequence[Binding]) -> ModelPatcher:
    """A clone of the model in which these bindings act, besides those of an earlier Apply.

    Raises:
        HostError: the model is of no supported family, or an encoder was made for another one.
        SiteError: a binding's selector names no site of this model.
    """
    dims = site_dims(model)
    for binding in bindings:
        check_encoder_fits(binding.subject.encoder, dims)
    earlier = model.get_attachment(_KEY)
    bound = BoundModel(merge_bindings(earlier.bindings if earlier else (), bindings), dims)
    clone = model.clone()
    clone.set_attachments(_KEY, bound)
    for kind, wrapper in bound.wrappers.items():
        clone.remove_wrappers_with_key(kind, _KEY)
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    return clone


class BoundModel:
    """The bindings of one Apply, and what ComfyUI calls around sampling. Never changed afterwards."""

    def __init__(self, bindings: Sequence[Binding], sites: Iterable[AttentionSite]) -> None:
        self.bindings = tuple(bindings)
        self._all_sites = tuple(sites)
        self._sites = {binding.id: binding.sites.select(self._all_sites) for binding in bindings}
        self._acting = tuple(binding for binding in bindings if binding.has_effect)
        self._masked = tuple(binding for binding in self._acting if binding.mask is not None)
        self._warn_once = warn_once_logger()

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """What to register, by ComfyUI's kind of wrapper."""
        return {
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.CALC_COND_BATCH: self.calc_cond_batch,
            WrappersMP.APPLY_MODEL: self.apply_model,
        }

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
                keys_and_values(binding.subject, self._sites[binding.id], model.load_device, dtype)
                for binding in self._acting
                if binding.id in used
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
            conds = [
                None if group is None else [with_slots(each, masks, latent_size) for each in group]
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
        replace = dict(options.get("patches_replace", {}))
        foreign = replace.get("attn2", {})
        options[CALL_KEY] = self._plan(executor.class_obj, x, t, slots, masks, foreign, options)
        # Every site, also in calls without a bound row: a compiled UNet remembers which sites were
        # patched when it was traced.
        options["patches_replace"] = {**replace, "attn2": {**foreign, **self._site_patches()}}
        with _traced_apart():
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _plan(
        self,
        base_model: Any,
        x: Tensor,
        t: Tensor,
        slots: Tensor | None,
        masks: Sequence[Tensor],
        foreign: Mapping[tuple[Any, ...], Patch],
        options: Mapping[str, Any],
    ) -> SiteCall:
        subjects: tuple[ActiveSubject, ...] = ()
        groups: Any = ()
        if slots is not None and self._have_a_row_each(x, (slots, *masks)):
            regions = {
                binding.id: mask.to(x.device)
                for binding, mask in zip(self._masked, masks, strict=False)
            }
            acting = self._acting_at(base_model.model_sampling, t, options)
            loaded = _loaded_keys_values(base_model)
            makers = {
                binding.id: partial(
                    self._subject, binding, loaded[binding.subject.digest], regions.get(binding.id)
                )
                for binding in acting
                if binding.subject.digest in loaded
            }
            subjects, groups = plan_groups(slots[..., 0].cpu(), makers, x.device)
        return SiteCall(
            num_rows=x.shape[0],
            num_text_tokens=0 if slots is None else slots.shape[1],
            subjects=subjects,
            groups=groups,
            foreign=foreign,
            warn_once=self._warn_once,
        )

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

    def _subject(
        self, binding: Binding, loaded: SubjectKeysValues, region: Tensor | None, rows: Rows
    ) -> ActiveSubject:
        return ActiveSubject(binding, loaded, self._sites[binding.id], rows, region)

    def _acting_at(
        self, sampling: Any, t: Tensor, options: Mapping[str, Any]
    ) -> tuple[Binding, ...]:
        """The bindings whose part of the schedule this step is in; both ends belong to it."""
        if all((each.start_percent, each.end_percent) == (0.0, 1.0) for each in self._acting):
            return self._acting
        sigma = float(options.get("sigmas", t).flatten()[0])  # the one read of a device tensor
        return tuple(
            binding
            for binding in self._acting
            if sampling.percent_to_sigma(binding.end_percent)
            <= sigma
            <= sampling.percent_to_sigma(binding.start_percent)
        )

    def _site_patches(self) -> dict[tuple[Any, ...], Patch]:
        patch = _site_patch(_is_compiler_loaded())
        return {(*site,): patch for site in self._all_sites}


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    # The same function everywhere, which asks where it is: TorchCompileModel lets layers of the same
    # shape share one trace, and with it the function that was found when the first was traced.
    block, number = options["block"]
    site = AttentionSite(block, number, options["block_index"])
    return options[CALL_KEY].attend(site, query, key, value, options)


@cache
def _site_patch(compiling: bool) -> Patch:
    # A traced plan would be repeated in calls that have another one. The decorator imports the
    # compiler, which takes seconds, so it waits until something else has.
    return cast("Patch", torch.compiler.disable(_attend)) if compiling else _attend


def _is_compiler_loaded() -> bool:
    return "torch._dynamo" in sys.modules


@contextmanager
def _traced_apart() -> Iterator[None]:
    """Keeps the traces of a bound and a plain model apart, which are compiled from the same code.

    TorchCompileModel has the compiler ignore what is in the options, where all our differences are.
    This harmless setting of PyTorch is one that every trace does check.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(before != _is_compiler_loaded())
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _loaded_keys_values(base_model: Any) -> dict[bytes, SubjectKeysValues]:
    """Keys and values on the device of the running model, by the digest of their subject."""
    patchers = base_model.current_patcher.get_additional_models_with_key(_KEY)
    return {patcher.model.digest: patcher.model for patcher in patchers}
