"""The socket types of this pack."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "nested_attention"

EncoderSocket = io.Custom("NESTED_ATTENTION_ENCODER")
SubjectSocket = io.Custom("NESTED_ATTENTION_SUBJECT")
BindingSocket = io.Custom("NESTED_ATTENTION_BINDING")
RecordSocket = io.Custom("NESTED_ATTENTION_RECORD")
