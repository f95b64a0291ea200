"""Loader nodes for tiny diffusion transformers. Only the tests show this pack to ComfyUI."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor
from torch.nn import functional

sys.path.append(str(Path(os.environ["NESTED_ATTENTION_ROOT"], "tests", "comfy")))
import tiny_transformers

_SCALE = 8  # pixels for a cell of the latent


class LatentViewer:
    """Stands in for a VAE of pictures and videos: shows three channels of the latent."""

    def decode(self, latents: Tensor) -> Tensor:
        """`[batch, channels, (frames,) height, width]` to `[batch, (frames,) height, width, 3]`."""
        frames = latents.movedim(2, 1) if latents.ndim == 5 else latents[:, None]
        shown = frames[:, :, :3].flatten(0, 1)
        pixels = functional.interpolate(shown, scale_factor=_SCALE, mode="nearest")
        pixels = torch.sigmoid(pixels).movedim(1, -1).unflatten(0, frames.shape[:2])
        return pixels if latents.ndim == 5 else pixels[:, 0]


def _loader(node_id: str, outputs: list[Any], *makers: Any) -> type[io.ComfyNode]:
    class Loader(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            families = list(tiny_transformers.FAMILIES)
            return io.Schema(
                node_id=node_id,
                category="tiny_models",
                inputs=[io.Combo.Input("family", options=families)],
                outputs=[each.Output() for each in outputs],
            )

        @classmethod
        def execute(cls, family: str) -> io.NodeOutput:
            return io.NodeOutput(*(make(family) for make in makers))

    return Loader


def _vae(_: str) -> LatentViewer:
    return LatentViewer()


class TinyTransformersExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        model, clip = tiny_transformers.model, tiny_transformers.clip
        every = [io.Model, io.Clip, io.Vae]
        return [
            _loader("TinyTransformers_LoadModel", [io.Model], model),
            _loader("TinyTransformers_LoadClip", [io.Clip], clip),
            _loader("TinyTransformers_LoadVae", [io.Vae], _vae),
            _loader("TinyTransformers_LoadCheckpoint", every, model, clip, _vae),
        ]


async def comfy_entrypoint() -> TinyTransformersExtension:
    return TinyTransformersExtension()
