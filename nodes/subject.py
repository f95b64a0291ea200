"""Nodes that make and keep subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..nested_core.checkpoint import save_subject
from ..nested_core.encoder import Encoder
from ..nested_core.subject import Subject
from .bridge.paths import SUBJECTS, new_file_path
from .bridge.vision import encode_subject
from .sockets import CATEGORY, EncoderSocket, SubjectSocket

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel


class EncodeSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NestedAttention_EncodeSubject",
            display_name="Encode Subject",
            category=CATEGORY,
            description="Makes a subject of one or several photographs of the same person, animal or "
            "thing.",
            search_aliases=[
                "nested attention",
                "face",
                "identity",
                "reference image",
                "ip adapter",
            ],
            inputs=[
                EncoderSocket.Input(
                    "encoder", tooltip="Decides what of the photograph is kept as identity."
                ),
                io.Image.Input(
                    "image",
                    tooltip="Photographs of one subject. Each picture of the batch is another "
                    "reference of the same subject; a tight crop keeps more detail.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder that this encoder was trained with (for the authors' "
                    "release: CLIP ViT-H/14).",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The subject's region. Everything outside it is painted over, so that the "
                    "background does not become part of the identity.",
                ),
                io.Combo.Input(
                    "crop",
                    options=["center", "pad", "subject"],
                    default="center",
                    tooltip="What the image encoder sees: the centre square, the whole picture with "
                    "borders, or the mask's box with a margin.",
                ),
                io.Combo.Input(
                    "combine",
                    options=["concatenate", "average"],
                    default="concatenate",
                    tooltip="With several references: concatenate lets each pixel pick from any of "
                    "them (costs more), average blends them into one.",
                ),
            ],
            outputs=[SubjectSocket.Output(display_name="subject")],
        )

    @classmethod
    def execute(
        cls,
        encoder: Encoder,
        image: Tensor,
        clip_vision: ClipVisionModel | None = None,
        mask: Tensor | None = None,
        crop: str = "center",
        combine: str = "concatenate",
    ) -> io.NodeOutput:
        return io.NodeOutput(encode_subject(encoder, clip_vision, image, mask, crop, combine))


class SaveSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NestedAttention_SaveSubject",
            display_name="Save Subject",
            category=CATEGORY,
            description="Writes a subject to models/nested_subjects, to be used again without its "
            "photograph.",
            search_aliases=["nested attention", "save face", "save identity"],
            is_output_node=True,
            inputs=[
                SubjectSocket.Input(
                    "subject", tooltip="The subject to keep; its encoder is named in the file."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="subject",
                    tooltip="Begins the file's name; a number follows, so that nothing is "
                    "overwritten. A folder in front (people/anna) sorts your subjects.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, subject: Subject, filename_prefix: str = "subject") -> io.NodeOutput:
        path, name = new_file_path(SUBJECTS, filename_prefix)
        save_subject(subject, path)
        return io.NodeOutput(ui=ui.PreviewText(f"Saved as {name}"))
