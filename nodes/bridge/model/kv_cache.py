"""Encoders and nested keys and values as ComfyUI-managed models.

A subject's keys and values never change over the steps: they are projected once per subject, site,
device and precision, kept as long as the subject is, and moved to and from the device by ComfyUI.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ....nested_core.call.keys_values import SiteKeysValues, SubjectKeysValues, identity_of
from ....nested_core.encoder import Encoder
from ....nested_core.sites import Site
from ....nested_core.subject import Subject

_Precision: TypeAlias = tuple[torch.device, torch.dtype]

# Strong for as long as a subject lives, so that editing a binding projects nothing anew ...
_of_subject: WeakKeyDictionary[Subject, dict[_Precision, ModelPatcher]] = WeakKeyDictionary()
# ... and shared between equal subjects of one encoder, such as a file that was loaded twice.
_of_encoder: WeakKeyDictionary[
    Encoder, WeakValueDictionary[tuple[bytes, _Precision], ModelPatcher]
] = WeakKeyDictionary()


def encoder_patcher(encoder: Encoder) -> ModelPatcher:
    """The encoder under ComfyUI's memory management; one per encoder object."""
    patcher = encoder.__dict__.get("comfy_patcher")
    if patcher is None:
        patcher = encoder.__dict__["comfy_patcher"] = _managed(encoder)
    return patcher


def keys_and_values(
    subject: Subject, sites: Collection[Site], device: torch.device, dtype: torch.dtype
) -> ModelPatcher:
    """A model holding the subject's keys and values at `sites` (at least), projected where missing.

    Its `.model` is a `SubjectKeysValues`.
    """
    precision = (device, dtype)
    shared = _of_encoder.setdefault(subject.encoder, WeakValueDictionary())
    patcher = shared.get((subject.digest, precision))
    done = {} if patcher is None else patcher.model.by_site
    missing = [site for site in subject.encoder.family.in_network_order(sites) if site not in done]
    if patcher is None or missing:
        # In the mode that the caller runs in: the encoder's tensors were made in that one too.
        model_management.load_models_gpu([encoder_patcher(subject.encoder)])
        if patcher is not None:
            patcher.detach()
        patcher = _managed(
            SubjectKeysValues(identity_of(subject), {**done, **_project(subject, missing, dtype)}),
            device,
        )
        shared[subject.digest, precision] = patcher
    _of_subject.setdefault(subject, {})[precision] = patcher
    return patcher


@torch.inference_mode(False)
@torch.no_grad()
def _project(subject: Subject, sites: list[Site], dtype: torch.dtype) -> dict[Site, SiteKeysValues]:
    """Keys and values as plain tensors, whichever mode is on: they outlive this sampling."""
    device = encoder_patcher(subject.encoder).load_device
    tokens = subject.tokens.to(device)[None].clone()
    log_weights, kept_on = subject.log_weights, model_management.unet_offload_device()
    projected: dict[Site, SiteKeysValues] = {}
    for site in sites:
        # Projected in float32, kept in the model's precision: it happens once.
        key, value = subject.encoder.project(site, tokens)
        projected[site] = SiteKeysValues(
            key.to(kept_on, dtype),
            value.to(kept_on, dtype),
            None if log_weights is None else log_weights.to(kept_on, dtype, copy=True),
        )
    return projected


def _managed(module: nn.Module, device: torch.device | None = None) -> ModelPatcher:
    device = device if device is not None else model_management.get_torch_device()
    patcher = ModelPatcher(module, device, model_management.unet_offload_device())
    # The multi-GPU nodes make a copy of their own for every further device.
    patcher.cached_patcher_init = (_managed_copy, (module, device))
    return patcher


def _managed_copy(module: nn.Module, device: torch.device, **_: object) -> ModelPatcher:
    # An encoder knows its patcher; the copy gets its own.
    known = {id(module.__dict__.get("comfy_patcher")): None}
    return _managed(copy.deepcopy(module, known).to("cpu"), device)
