"""Nodes that make, keep and line up subjects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui
from torch import Tensor

from ..nested_core.checkpoint import save_new_subject
from ..nested_core.encoder import Encoder
from ..nested_core.errors import SubjectError
from ..nested_core.preprocess import CropMode
from ..nested_core.subject import CombineMode, Subject, SubjectSequence
from ..nested_core.vision import encode_photographs
from .bridge.notices import current_node, tell
from .bridge.paths import SUBJECTS, save_folder, with_date
from .bridge.shown import show_photographs, shows_pictures
from .bridge.vision import image_encoder
from .search import LIKENESS, PHOTOGRAPH
from .sockets import EncoderSocket, NodeSchema, SubjectSocket

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel

_MAX_SUBJECTS = 32


def photographs_input() -> io.Input:
    """What a subject is made of."""
    return io.Image.Input(
        "image",
        tooltip="Photographs of one subject. Each picture of the batch is another "
        "reference of the same subject; a tight crop keeps more detail.",
    )


class EncodeSubject(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_EncodeSubject",
            display_name="Encode Subject",
            description="Makes a subject of one or several photographs of the same person, animal or "
            "thing.",
            search_aliases=[*LIKENESS, *PHOTOGRAPH, "face embedding"],
            inputs=[
                EncoderSocket.Input(
                    "encoder", tooltip="Decides what of the photograph is kept as identity."
                ),
                photographs_input(),
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
                io.String.Input(
                    "weights",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="With several references: how much each photograph counts, such as "
                    "2, 1, 0.5. A weight of 2 is as if that photograph was there twice. Empty: all "
                    "the same.",
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
        crop: CropMode = "center",
        combine: CombineMode = "concatenate",
        weights: str = "",
    ) -> io.NodeOutput:
        subject, seen = encode_photographs(
            encoder, image_encoder(encoder, clip_vision), image, mask, crop, combine, weights
        )
        return io.NodeOutput(subject, ui=show_photographs(seen))


class SaveSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_SaveSubject",
            display_name="Save Subject",
            description="Writes a subject to models/nested_subjects, to be used again without its "
            "photograph.",
            search_aliases=[
                "nested attention",
                "save face",
                "save identity",
                "save character",
                "character",
                "identity",
                "save embedding",
            ],
            is_output_node=True,
            inputs=[
                SubjectSocket.Input(
                    "subject", tooltip="The subject to keep; its encoder is named in the file."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="subject",
                    tooltip="Begins the file's name; a number follows, so that nothing is "
                    "overwritten. A folder in front (people/anna) sorts your subjects; %year%, %month% and "
                    "%day% become today's.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls, subject: Subject | SubjectSequence, filename_prefix: str = "subject"
    ) -> io.NodeOutput:
        if isinstance(subject, SubjectSequence):
            raise SubjectError(
                f"Save Subject: found {len(subject.subjects)} subject(s) of a Subject per Picture "
                "node, expected a single one. Save each subject by itself, from the node that makes "
                "it, and line them up again after loading."
            )
        folder = save_folder(SUBJECTS)
        path = save_new_subject(subject, folder, with_date(filename_prefix))
        # As the combos of Load Subject call it.
        said = f"Saved as {path.relative_to(folder)}"
        tell(said, [current_node()], logging.INFO)  # the page shows no text of the outputs
        return io.NodeOutput(ui=ui.PreviewText(said))


class SubjectPerPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_SubjectPerPicture",
            display_name="Subject per Picture",
            description="Gives each picture of a batch a subject of its own under one word: the panels "
            "of a comic, the frames of a video, or several people in one go.",
            search_aliases=[
                "nested attention",
                "batch",
                "comic",
                "storyboard",
                "consistent character",
                "character",
                "frames",
                "video",
                "sequence",
            ],
            inputs=[
                io.Autogrow.Input(
                    "subjects",
                    template=io.Autogrow.TemplatePrefix(
                        SubjectSocket.Input(
                            "subject",
                            tooltip="The first is drawn in the first picture of the batch, the second "
                            "in the second. A longer batch begins with the first again.",
                        ),
                        prefix="subject_",
                        min=1,
                        max=_MAX_SUBJECTS,
                    ),
                ),
            ],
            outputs=[SubjectSocket.Output(display_name="subject")],
        )

    @classmethod
    def execute(cls, subjects: dict[str, Subject | SubjectSequence]) -> io.NodeOutput:
        connected = [subject for subject in subjects.values() if subject is not None]
        return io.NodeOutput(
            SubjectSequence(tuple(each for subject in connected for each in subject.subjects))
        )
