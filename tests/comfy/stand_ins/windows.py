"""Packs that run the UNet on some pictures of a batch at a time, as samplers of animations do."""

from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP


class Windows:
    """A wrapper around ComfyUI's batching of conditionings.

    Args:
        windows: of pictures, which may overlap and come in any order.
        tells: whether the options say which pictures, as AnimateDiff-Evolved's do.
    """

    def __init__(self, windows, tells=True):
        self._windows, self._tells = windows, tells

    def __call__(self, executor, model, conds, x_in, timestep, model_options):
        out = [torch.zeros_like(x_in) for _ in conds]
        count = torch.zeros(len(x_in), 1, 1, 1)
        for pictures in self._windows:
            if self._tells:
                told = {
                    "sub_idxs": list(pictures),
                    "full_length": len(x_in),
                    "context_options": None,
                }
                model_options["transformer_options"]["ad_params"] = told
            some = [_some(each, pictures, len(x_in)) for each in conds]
            found = executor(model, some, x_in[pictures], timestep[pictures], model_options)
            for result, part in zip(out, found, strict=True):
                result[pictures] += part
            count[pictures] += 1
        model_options["transformer_options"].pop("ad_params", None)
        return [each / count for each in out]

    def on(self, model):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "windows", self)
        return model


def _some(conds, pictures, total):
    """Whatever has a row for each picture loses those of the others."""
    if conds is None:
        return None
    return [
        {
            name: _resized(each, pictures, total) if name == "model_conds" else each
            for name, each in cond.items()
        }
        for cond in conds
    ]


def _resized(model_conds, pictures, total):
    return {
        name: each._copy_with(each.cond[pictures])
        if torch.is_tensor(each.cond) and len(each.cond) == total
        else each
        for name, each in model_conds.items()
    }
