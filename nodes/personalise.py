"""The node for the common case: one photograph and its word, ready to be applied."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..nested_core.binding import bind
from ..nested_core.errors import SubjectError, shown
from ..nested_core.fidelity import AS_TRAINED
from ..nested_core.vision import encode_photographs
from .bind import fidelity_input, word_inputs
from .bridge.notices import own_id
from .bridge.paths import (
    CLIP_VISIONS,
    ENCODERS,
    file_fingerprint,
    file_names,
    missing_file,
    searched,
)
from .bridge.shared_files import clip_vision_of_file, encoder_of_file
from .bridge.shown import show_photographs, shows_pictures
from .bridge.vision import image_encoder
from .loaders import encoder_name_input
from .search import LIKENESS, PHOTOGRAPH
from .sockets import BindingSocket, NodeSchema, SubjectSocket
from .subject import photographs_input

NO_FILE = "none"
_NAME = "Subject from Photo"


class PersonaliseSubject(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_Subject",
            display_name=_NAME,
            description="Gives a photograph a word of its own: load, encode and bind in one. Where the "
            "prompt says that word, the subject appears.",
            search_aliases=[*LIKENESS, *PHOTOGRAPH],
            inputs=[
                photographs_input(),
                *word_inputs(),
                fidelity_input(),
                encoder_name_input(),
                io.Combo.Input(
                    "clip_vision_name",
                    options=[*file_names(CLIP_VISIONS), NO_FILE],
                    tooltip="The image encoder that this encoder was trained with (for the authors' "
                    "release: CLIP ViT-H/14). Files are looked for in models/clip_vision.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The subject's region in the photograph. The picture is cropped to it and "
                    "everything else painted over, so that the background does not become part of the "
                    "identity.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                BindingSocket.Output(display_name="binding"),
                SubjectSocket.Output(display_name="subject"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, encoder_name: str | None = None, clip_vision_name: str | None = None
    ) -> bool | str:
        missing = missing_file(ENCODERS, encoder_name)
        problems = [f"encoder_name: {missing}"] if missing else []
        if clip_vision_name == NO_FILE:
            problems.append(_needs_clip_vision(encoder_name))
        elif missing := missing_file(CLIP_VISIONS, clip_vision_name):
            problems.append(f"clip_vision_name: {missing}")
        # ComfyUI shows the answer once for each input, so it names the inputs, and all at once.
        return " ".join(problems) or True

    @classmethod
    def fingerprint_inputs(
        cls, encoder_name: str | None = None, clip_vision_name: str | None = None, **_: object
    ) -> str:
        encoder = file_fingerprint(ENCODERS, encoder_name)
        return f"{encoder}|{file_fingerprint(CLIP_VISIONS, clip_vision_name)}"

    @classmethod
    def execute(
        cls,
        image: Tensor,
        encoder_name: str,
        clip_vision_name: str,
        token: str = "<person>",
        noun: str = "",
        fidelity: float = AS_TRAINED,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        encoder = encoder_of_file(encoder_name)
        if clip_vision_name == NO_FILE:
            raise SubjectError(_needs_clip_vision(encoder_name))
        subject, seen = encode_photographs(
            encoder,
            image_encoder(encoder, clip_vision_of_file(clip_vision_name, encoder)),
            image,
            mask,
            crop="center" if mask is None else "subject",
            node=_NAME,
        )
        binding = bind(subject, token=token, noun=noun, fidelity=fidelity, node=own_id(cls))
        return io.NodeOutput(binding, subject, ui=show_photographs(seen))


def _needs_clip_vision(encoder_name: str | None) -> str:
    which = "the encoder" if encoder_name is None else f"encoder '{shown(encoder_name, 300)}'"
    return (
        f"clip_vision_name: it is '{NO_FILE}', but {which} reads photographs through a CLIP vision model. "
        f"Choose the one that it was trained with; its file belongs into {searched(CLIP_VISIONS)}."
    )
