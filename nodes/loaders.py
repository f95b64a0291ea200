"""Nodes that read encoder and subject files."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..nested_core.attention import ValueNormMode
from ..nested_core.checkpoint import load_subject
from ..nested_core.config import HiddenState
from ..nested_core.encoder import Encoder
from .bridge.paths import (
    ENCODERS,
    SUBJECTS,
    file_fingerprint,
    file_names,
    file_path,
    missing_file,
)
from .bridge.shared_files import encoder_of_file
from .bridge.shown import show_subjects, shows_pictures
from .search import LIKENESS
from .sockets import EncoderSocket, NodeSchema, SubjectSocket

FROM_FILE = "from file"


def encoder_name_input() -> io.Input:
    """The file of an encoder."""
    return io.Combo.Input(
        "encoder_name",
        options=file_names(ENCODERS),
        tooltip="Decides which kind of subject can be encoded and which checkpoints fit. "
        "Files are looked for in models/nested_attention.",
    )


class LoadEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_LoadEncoder",
            display_name="Load Nested Attention Encoder",
            description="Reads an encoder, which turns photographs of one kind of subject into "
            "something that the image model understands.",
            search_aliases=[
                *LIKENESS,
                "face encoder",
                "load ipadapter",
                "load instantid",
                "load pulid",
            ],
            inputs=[
                encoder_name_input(),
                io.Combo.Input(
                    "hidden_state",
                    options=[FROM_FILE, *get_args(HiddenState)],
                    default=FROM_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="The layer of the image encoder that the encoder was trained on. The other "
                    "one gives somebody who looks only roughly alike.",
                ),
                io.Combo.Input(
                    "value_norm_mode",
                    options=[FROM_FILE, *get_args(ValueNormMode)],
                    default=FROM_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="How the subject's strength is measured in each layer. Anything but what "
                    "the encoder was trained with gives flat or burnt pictures.",
                ),
                io.Float.Input(
                    "value_norm_scale",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How strong the subject is made, compared with the word it stands for. "
                    "0: from the file.",
                ),
                io.String.Input(
                    "noun",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="The word that the encoder was trained with, which its subjects bring "
                    "along. Empty: from the file.",
                ),
                io.Int.Input(
                    "dim_head",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="Width of the attention heads inside the encoder. A wrong one gives "
                    "somebody else. 0: from the file; where it does not say, 64.",
                ),
            ],
            outputs=[EncoderSocket.Output(display_name="encoder")],
        )

    @classmethod
    def validate_inputs(cls, encoder_name: str | None = None) -> bool | str:
        return missing_file(ENCODERS, encoder_name) or True

    @classmethod
    def fingerprint_inputs(cls, encoder_name: str | None = None, **_: object) -> str:
        return file_fingerprint(ENCODERS, encoder_name)

    @classmethod
    def execute(
        cls,
        encoder_name: str,
        hidden_state: str = FROM_FILE,
        value_norm_mode: str = FROM_FILE,
        value_norm_scale: float = 0.0,
        noun: str = "",
        dim_head: int = 0,
    ) -> io.NodeOutput:
        settings = {
            "image_encoder.hidden_state": (hidden_state, FROM_FILE),
            "value_norm.mode": (value_norm_mode, FROM_FILE),
            "value_norm.scale": (float(value_norm_scale), 0.0),
            "noun": (noun.strip(), ""),
            "resampler.dim_head": (dim_head, 0),
        }
        chosen = {name: value for name, (value, unset) in settings.items() if value != unset}
        return io.NodeOutput(encoder_of_file(encoder_name, chosen))


class LoadSubject(io.ComfyNode):
    @classmethod
    @shows_pictures
    def define_schema(cls) -> io.Schema:
        return NodeSchema(
            node_id="NestedAttention_LoadSubject",
            display_name="Load Subject",
            description="Reads a subject that was saved before; the photograph is not needed again.",
            search_aliases=[
                "nested attention",
                "saved face",
                "saved identity",
                "saved character",
                "character",
                "identity",
                "load embedding",
            ],
            inputs=[
                io.Combo.Input(
                    "subject_name",
                    options=file_names(SUBJECTS),
                    tooltip="A subject saved by Save Subject. Files are looked for in "
                    "models/nested_subjects.",
                ),
                EncoderSocket.Input(
                    "encoder",
                    tooltip="The encoder that the subject was made with. Any other is refused: it "
                    "would read the tokens as somebody else.",
                ),
            ],
            outputs=[SubjectSocket.Output(display_name="subject")],
        )

    @classmethod
    def validate_inputs(cls, subject_name: str | None = None) -> bool | str:
        return missing_file(SUBJECTS, subject_name) or True

    @classmethod
    def fingerprint_inputs(cls, subject_name: str | None = None, **_: object) -> str:
        return file_fingerprint(SUBJECTS, subject_name)

    @classmethod
    def execute(cls, subject_name: str, encoder: Encoder) -> io.NodeOutput:
        subject = load_subject(file_path(SUBJECTS, subject_name), encoder)
        return io.NodeOutput(subject, ui=show_subjects([subject]))
