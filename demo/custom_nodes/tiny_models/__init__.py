"""Loader nodes for the demo's tiny models. Only the demo and the tests show this pack to ComfyUI."""

from __future__ import annotations

import comfy.clip_vision
from comfy_api.latest import ComfyExtension, io

from . import tiny

comfy.clip_vision.load_clipvision_from_sd = tiny.with_small_files(
    comfy.clip_vision.load_clipvision_from_sd
)


class TinyModelsLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyModels_LoadCheckpoint",
            display_name="Load Tiny Checkpoint",
            category="tiny_models",
            description="A checkpoint of a few hundred kilobytes with random weights.",
            inputs=[io.Combo.Input("family", options=list(tiny.FAMILIES), default="sdxl")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, family: str = "sdxl") -> io.NodeOutput:
        return io.NodeOutput(tiny.unet(family), tiny.clip(family), tiny.vae())


class TinyModelsLoadClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyModels_LoadClipVision",
            display_name="Load Tiny CLIP Vision",
            category="tiny_models",
            description="An image encoder with random weights.",
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(tiny.clip_vision())


class TinyModelsLoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyModels_LoadControlNet",
            display_name="Load Tiny ControlNet",
            category="tiny_models",
            description="A ControlNet with random weights.",
            inputs=[io.Combo.Input("family", options=list(tiny.FAMILIES), default="sdxl")],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls, family: str = "sdxl") -> io.NodeOutput:
        return io.NodeOutput(tiny.control_net(family))


class TinyModelsExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyModelsLoadCheckpoint, TinyModelsLoadClipVision, TinyModelsLoadControlNet]


async def comfy_entrypoint() -> TinyModelsExtension:
    return TinyModelsExtension()
