"""The node for samplers that draw a part of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from .bridge.model.patch import crop_masks
from .bridge.notices import own_id
from .sockets import NodeSchema

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class CropMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_CropMasks",
            display_name="Crop Subject Masks",
            description="For a sampler that draws a part of the picture, as detailers and inpaint crops "
            "do: cuts the subjects' masks to that part, which else would be stretched over it.",
            search_aliases=[
                "nested attention",
                "detailer",
                "inpaint crop",
                "face detailer",
                "tile",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From Apply Nested Attention; other samplers keep using that one.",
                ),
                io.Mask.Input(
                    "region",
                    tooltip="The part that the sampler draws, white in a mask of the whole picture. The "
                    "box around it counts.",
                ),
                io.Int.Input(
                    "padding",
                    default=0,
                    min=0,
                    max=8192,
                    optional=True,
                    tooltip="By how many pixels of the region's mask the drawn part is larger than its "
                    "box, on every side.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, region: Tensor, padding: int = 0) -> io.NodeOutput:
        return io.NodeOutput(crop_masks(model, region, padding, own_id(cls)))
