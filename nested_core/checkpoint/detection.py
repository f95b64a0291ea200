"""Which kind of file it is, told by its header alone."""

from __future__ import annotations

from typing import Literal

from ..errors import CheckpointError
from .native import ENCODER_FORMAT
from .roles import looks_like_encoder
from .safetensors_file import Header
from .shards import Source
from .subject_file import SUBJECT_FORMAT
from .weights import listing

FileKind = Literal["native-encoder", "official-encoder", "subject", "unknown"]


def kind_of(header: Header | Source) -> FileKind:
    """The kind of a file: by our metadata where it has any, else by what its keys look like."""
    declared = header.metadata.get("format", "")
    if declared == ENCODER_FORMAT:
        return "native-encoder"
    if declared == SUBJECT_FORMAT:
        return "subject"
    return "official-encoder" if looks_like_encoder(header.tensors) else "unknown"


def wrong_kind(header: Header | Source, wanted: str) -> CheckpointError:
    """The error of a file that was loaded as something else than it is."""
    found = {
        "native-encoder": "an encoder file; load it with Load Encoder",
        "official-encoder": "an encoder file; load it with Load Encoder",
        "subject": "a subject file; load it with Load Subject",
    }.get(kind_of(header))
    if found is not None:
        return CheckpointError(f"{header.where}: expected {wanted}, found {found}.")
    keys = listing("tensors", header.tensors, limit=4) if header.tensors else "no tensors"
    return CheckpointError(
        f"{header.where}: expected {wanted} of Nested Attention, found {keys}. "
        f"Its metadata has the format '{header.metadata.get('format', '')}'. Choose "
        "another file: one that training or Save Subject wrote, or the authors' encoder."
    )
