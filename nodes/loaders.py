"""Nodes that read encoder and subject files."""

from __future__ import annotations

from comfy_api.latest import io

from ..nested_core.checkpoint import load_encoder, load_subject
from ..nested_core.encoder import Encoder
from .bridge.paths import ENCODERS, SUBJECTS, file_fingerprint, file_names, file_path
from .sockets import CATEGORY, EncoderSocket, SubjectSocket


class LoadEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NestedAttention_LoadEncoder",
            display_name="Load Nested Attention Encoder",
            category=CATEGORY,
            description="Reads an encoder, which turns photographs of one kind of subject into "
            "something that the image model understands.",
            search_aliases=["nested attention", "personalization", "identity", "face encoder"],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=file_names(ENCODERS),
                    tooltip="Decides which kind of subject can be encoded and which checkpoints fit. "
                    "Files are looked for in models/nested_attention.",
                )
            ],
            outputs=[EncoderSocket.Output(display_name="encoder")],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder_name: str) -> str:
        return file_fingerprint(ENCODERS, encoder_name)

    @classmethod
    def execute(cls, encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_encoder(file_path(ENCODERS, encoder_name)))


class LoadSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NestedAttention_LoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="Reads a subject that was saved before; the photograph is not needed again.",
            search_aliases=["nested attention", "saved face", "saved identity"],
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
    def fingerprint_inputs(cls, subject_name: str, **_: object) -> str:
        return file_fingerprint(SUBJECTS, subject_name)

    @classmethod
    def execute(cls, subject_name: str, encoder: Encoder) -> io.NodeOutput:
        return io.NodeOutput(load_subject(file_path(SUBJECTS, subject_name), encoder))
