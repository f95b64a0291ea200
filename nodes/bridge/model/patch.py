"""The way into the model: wrappers on a clone, and nothing in the options until a call runs.

A patch put into `patches_replace` at Apply would be overwritten by a later node's on the same key,
or hide one on the whole block. So sites are wrapped around whatever stands there when the UNet is
called, on a copy of the options that ends with the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....nested_core.binding import Binding, merge_bindings
from ....nested_core.call.rules import Rules
from ....nested_core.errors import HostError
from ....nested_core.region import cropped_to
from ..families.host_family import HostFamily
from ..families.registry import check_encoder_fits, host_family_of
from ..notices import Notices
from ..text.conditioning import bound_ids
from .calls import ModelCalls
from .kv_cache import keys_and_values
from .recording import recorders_of
from .report import Report
from .sampling import SAMPLING_KEY, Sampling
from .surroundings import in_front_of_strangers

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

KEY = "nested_attention"


def bind_model(
    model: ModelPatcher,
    bindings: Sequence[Binding],
    separation: float = 0.0,
    node: str | None = None,
) -> ModelPatcher:
    """A clone of the model in which these bindings act, besides those of an earlier Apply.

    Of two Apply nodes' separations the greater counts.

    Args:
        node: the one that asks for it, where sentences about no subject in particular go.

    Raises:
        HostError: the model is of no supported family, or an encoder was made for another one.
        SiteError: a binding's selector names no site of this model.
    """
    host = host_family_of(model)
    dims = host.site_dims(model.model.diffusion_model)
    for binding in bindings:
        check_encoder_fits(binding.subject.encoder, host, dims)
    earlier = bound_model_of(model)
    if earlier is not None:
        bindings = merge_bindings(earlier.rules.bindings, bindings)
        separation = max(separation, earlier.rules.separation)
    sites = {binding.id: binding.sites.select(dims) for binding in bindings}
    bound = BoundModel(Rules(tuple(bindings), sites, separation), host, node)
    clone = model.clone()
    clone.set_attachments(KEY, bound)
    for kind, wrapper in bound.wrappers.items():
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def crop_masks(
    model: ModelPatcher, region: Tensor, padding: int = 0, node: str | None = None
) -> ModelPatcher:
    """A clone of a bound model for a sampler that draws a part of the picture; see `cropped_to`.

    Raises:
        HostError: nothing is bound in this model.
        BindingError: the region is empty.
    """
    bound = bound_model_of(model)
    if bound is None:
        raise HostError(
            "Crop Subject Masks: this MODEL has no subjects, so there are no masks to crop. Connect "
            "the MODEL of Apply Nested Attention."
        )
    return bind_model(model, cropped_to(bound.rules.bindings, region, padding), 0.0, node)


def bound_model_of(model: ModelPatcher) -> BoundModel | None:
    """What an earlier Apply put into the model."""
    return model.get_attachment(KEY)


class BoundModel:
    """The bindings of one Apply, and what ComfyUI calls around sampling. Never changed afterwards."""

    def __init__(self, rules: Rules, host: HostFamily, node: str | None) -> None:
        self.rules, self._node = rules, node
        self._calls = ModelCalls(rules, host)

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundModel:
        return self  # as of the calls

    @property
    def wrappers(self) -> dict[str, Callable[..., Any]]:
        """What to register, by ComfyUI's kind of wrapper."""
        return {
            WrappersMP.OUTER_SAMPLE: self.outer_sample,
            WrappersMP.PREPARE_SAMPLING: self.prepare_sampling,
            WrappersMP.PREDICT_NOISE: self._calls.predict_noise,
            WrappersMP.CALC_COND_BATCH: self._calls.calc_cond_batch,
            WrappersMP.APPLY_MODEL: self._calls.apply_model,
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
        guider = executor.class_obj
        notices = Notices(self._node)
        recorders = recorders_of(guider.model_patcher)
        state = Sampling(sigmas.tolist(), self.rules.separation > 0.0, recorders, notices)
        options = guider.model_options.get("transformer_options", {})
        options = in_front_of_strangers(options, KEY, self._calls.around_model)
        guider.model_options["transformer_options"] = {**options, SAMPLING_KEY: state}
        report = Report(self.rules, guider.conds, notices)
        report.begin()
        for each in state.recordings:
            callback = each.with_preview(callback)
        callback = state.with_steps(callback)
        out = executor(
            noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs
        )
        report.end(state)
        if state.recordings:
            # Samplers put out either: their latents, or what their last step took for finished.
            latents = [out]
            if isinstance(state.denoised, Tensor):
                base_model = guider.model_patcher.model
                latents.append(base_model.process_latent_out(state.denoised.cpu()))
            for each in state.recordings:
                each.finish([latent.detach().cpu() for latent in latents])
        return out

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
            KEY,
            [
                keys_and_values(subject, self.rules.sites[binding.id], model.load_device, dtype)
                for binding in self.rules.acting
                if binding.id in used
                for subject in binding.subject.subjects
            ],
        )
        return executor(model, noise_shape, conds, *args, **kwargs)
