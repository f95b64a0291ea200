"""What the nodes of this pack share: their category, and their socket types."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

NodeSchema = partial(io.Schema, category="nested_attention")

EncoderSocket = io.Custom("NESTED_ATTENTION_ENCODER")
SubjectSocket = io.Custom("NESTED_ATTENTION_SUBJECT")
BindingSocket = io.Custom("NESTED_ATTENTION_BINDING")
RecordSocket = io.Custom("NESTED_ATTENTION_RECORD")
