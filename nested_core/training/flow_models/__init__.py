"""Diffusion transformers as base models: one class for all of them, and a description of each family.

model.py         the base model: pictures, captions, predictions
description.py   what a family says of itself; `flux.py` and the others say it
texts.py         in which row of an encoded text a noun ends
layers.py        attention layers with the subjects in them
calls.py         what those layers need to know while a model runs
"""

from __future__ import annotations

from collections.abc import Sequence

from .cosmos_predict2 import CosmosPredict2
from .description import FlowFamily
from .flux import Flux
from .qwen_image import QwenImage
from .sd3 import StableDiffusion3
from .wan import Wan
from .z_image import ZImage

FLOW_FAMILIES: Sequence[FlowFamily] = (
    Flux(),
    StableDiffusion3(),
    QwenImage(),
    ZImage(),
    CosmosPredict2(),
    Wan(),
)


def family_of_pipeline(class_name: str) -> FlowFamily | None:
    """The family of the models that a class of diffusers holds; None for all others."""
    found = (each for each in FLOW_FAMILIES if class_name in each.pipelines)
    return next(found, None)
