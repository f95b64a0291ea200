"""The node that has photographs of its own, for workflows that shall run before anybody has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..nested_core.shapes import Float
from .bridge.shown import show_photographs, shows_pictures
from .search import PHOTOGRAPH
from .sockets import NodeSchema

# Drawn by demo/tiny_world/drawings/example_photographs.py. A picture that shows a subject has a mask of the
# same name.
PHOTOGRAPHS = Path(__file__).parent / "photographs"
MASKS = PHOTOGRAPHS / "masks"


def photograph_names() -> list[str]:
    """What there is to choose from."""
    return sorted(path.stem for path in PHOTOGRAPHS.glob("*.png"))


class ExamplePhotograph(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_ExamplePhotograph",
            display_name="Example Photograph",
            description="A picture that comes with Nested Attention, so that its example workflows run "
            "at once. For a picture of your own, put Load Image in its place.",
            search_aliases=["nested attention", "example image", "test image", *PHOTOGRAPH],
            inputs=[
                io.Combo.Input(
                    "photograph",
                    options=photograph_names(),
                    default="anna",
                    tooltip="anna and ben are people, rex and bella are dogs, all of them drawn by a "
                    "program. two_people_pose is a pose for a ControlNet.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(display_name="mask"),
            ],
        )

    @classmethod
    def execute(cls, photograph: str) -> io.NodeOutput:
        image = _read(PHOTOGRAPHS / f"{photograph}.png", "RGB")
        mask_file = MASKS / f"{photograph}.png"
        mask = _read(mask_file, "L") if mask_file.is_file() else torch.ones_like(image[..., 0])
        return io.NodeOutput(image, mask, ui=show_photographs([image]))


def _read(path: Path, mode: str) -> Float[torch.Tensor, "1 height width *channels"]:
    with Image.open(path) as file:
        pixels = np.asarray(file.convert(mode), np.float32) / 255.0
    return torch.from_numpy(pixels)[None]
