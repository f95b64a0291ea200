"""Nodes that record where the subjects act, and draw it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..nested_core.maps import SHEETS, RecordPlan, draw_sheet
from .bridge.families.registry import host_family_of
from .bridge.model.recording import SampledRecord, record_maps
from .bridge.shown import show_overlays, shows_pictures
from .sockets import NodeSchema, RecordSocket

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class RecordMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_RecordMaps",
            display_name="Record Maps",
            description="Watches where each subject acts while the picture is drawn. The picture "
            "stays the same.",
            search_aliases=["nested attention", "attention map", "heatmap", "visualize", "debug"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL of Apply Nested Attention. Sample with the MODEL that comes "
                    "out, or nothing is recorded.",
                ),
                io.String.Input(
                    "steps",
                    default="",
                    optional=True,
                    tooltip="Steps to record, such as 0-4, 10, last; the first is 0. Fewer steps cost "
                    "less time. Empty: all.",
                ),
                io.String.Input(
                    "sites",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Attention layers to record. UNets: u, m0 or u3-5; !d leaves the input "
                    "blocks out. Flux: d0-18, s0-37. Other transformers: b0-59. Empty: all.",
                ),
                io.Boolean.Input(
                    "values",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Also keep what each pixel is told of the subject, at the last of the "
                    "steps: what Show Maps needs for 'values'.",
                ),
                io.Boolean.Input(
                    "preview",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Live preview while sampling: shows where the subjects act, each in its "
                    "own colour.",
                ),
            ],
            outputs=[io.Model.Output(), RecordSocket.Output(display_name="record")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        steps: str = "",
        sites: str = "",
        values: bool = True,
        preview: bool = False,
    ) -> io.NodeOutput:
        plan = RecordPlan.from_text(steps, sites, values, host_family_of(model).family)
        return io.NodeOutput(*record_maps(model, plan, preview))


class ShowMaps(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_ShowMaps",
            display_name="Show Maps",
            description="Draws what Record Maps saw: where each subject acts, where subjects get into "
            "each other's way, and what each pixel is told.",
            search_aliases=["nested attention", "attention map", "heatmap", "visualize", "debug"],
            inputs=[
                RecordSocket.Input("record", tooltip="From the Record Maps node."),
                io.Latent.Input(
                    "samples",
                    tooltip="The LATENT of the sampler that got the MODEL of Record Maps. Maps of another "
                    "picture are refused.",
                ),
                io.Combo.Input(
                    "show",
                    options=list(SHEETS),
                    default="overview",
                    tooltip="Everything in one, split by the layers' resolutions, step by step, or "
                    "what each pixel is told of the subject.",
                ),
                io.Int.Input(
                    "picture",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip="Which picture of the batch, or which frame of a video's latent; the first "
                    "is 0.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The finished pictures. The maps are laid over the one that was chosen.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls,
        record: SampledRecord,
        samples: object,
        show: str = "overview",
        picture: int = 0,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        maps = record.of(samples)
        below = None if image is None else _picture_of(image, picture, maps.num_frames, samples)
        sheet = draw_sheet(maps, show, picture, None if below is None else below.numpy())
        return io.NodeOutput(torch.from_numpy(sheet)[None], ui=show_overlays(maps))


def _picture_of(image_bhwc: Tensor, picture: int, num_frames: int, samples: Any) -> Tensor:
    """The chosen picture, or the first where the images are fewer than the pictures recorded.

    A video's decoder makes several images of each frame of the latent but the first.
    """
    if num_frames > 1:
        per_video = max(len(image_bhwc) // len(samples["samples"]), 1)
        video, frame = divmod(picture, num_frames)
        picture = video * per_video + round(frame * (per_video - 1) / (num_frames - 1))
    chosen = image_bhwc[picture if picture < len(image_bhwc) else 0]
    colours = chosen[..., :3].float().cpu()
    return colours if colours.shape[-1] == 3 else colours[..., :1].expand(-1, -1, 3)
