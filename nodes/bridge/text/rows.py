"""Which rows of an encoded text are which text encoder's tokens.

A UNet reads one or two CLIPs side by side, row by row. A transformer reads a language model, behind
the CLIPs (SD3) or alone. What a language model does not hand on is the head of its template, and what
it reads besides is a picture before the prompt: so its tokens are counted from the text's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ....nested_core.prompt import MarkedToken

_CLIPS = ("l", "g")
# Whose adapter writes the text anew, one row for each token of this tokenizer, from the first row on.
_ADAPTED: Mapping[frozenset[str], str] = {frozenset(("qwen3_06b", "t5xxl")): "t5xxl"}

Chunks = Sequence[Sequence[tuple[Any, ...]]]


class _Part(NamedTuple):
    """Tokens of one text encoder, and the rows that it fills."""

    chunks: Chunks
    width: int | None
    rows: range


def marked_rows(
    tokens: Mapping[str, Chunks], encoders: Any, num_rows: int
) -> Iterator[tuple[int, int]]:
    """Row and binding id of every mark. Where two encoders mark a row differently, the later one counts.

    Args:
        tokens: by tokenizer.
        encoders: ComfyUI's `cond_stage_model`.
        num_rows: of the encoded text.
    """
    for part in _parts(tokens, encoders, num_rows):
        for number, binding_id in _marks(part.chunks, part.width):
            if number < len(part.rows) and part.rows[number] >= 0:
                yield part.rows[number], binding_id


def num_text_rows(tokens: Mapping[str, Chunks], num_rows: int) -> int:
    """How many rows the text has where the model reads it."""
    adapted = _ADAPTED.get(frozenset(tokens))
    return num_rows if adapted is None else sum(map(len, tokens[adapted]))


def _parts(tokens: Mapping[str, Chunks], encoders: Any, num_rows: int) -> Iterator[_Part]:
    adapted = _ADAPTED.get(frozenset(tokens))
    if adapted is not None:
        yield _Part(tokens[adapted], None, range(sum(map(len, tokens[adapted]))))
        return
    widths = {name: _embedding_width(encoders, name) for name in tokens}
    languages = [name for name in tokens if name not in _CLIPS and widths[name] is not None]
    first = num_rows
    if languages:
        (name,) = languages[-1:]
        first = num_rows - _num_kept(tokens[name], widths[name])
    is_clip_read = not languages or "g" in tokens  # Flux takes no row from its CLIP
    for name in _CLIPS:
        if is_clip_read and widths.get(name) is not None:
            yield _Part(tokens[name], widths[name], range(max(first, 0)))
    for name in languages[-1:]:
        yield _Part(tokens[name], widths[name], range(first, num_rows))


def _embedding_width(encoders: Any, name: str) -> int | None:
    """Of the tokens of a text model; None where there is none, as of L in SDXL's refiner."""
    names = (f"clip_{name}", name)
    if getattr(encoders, "clip_name", None) == name:
        names = (*names, encoders.clip)
    model = next((found for each in names if (found := getattr(encoders, each, None))), None)
    if model is None:
        return None
    return model.transformer.get_input_embeddings().weight.shape[-1]


def _num_kept(chunks: Chunks, width: int | None) -> int:
    return sum(not _is_dropped(token, width) for chunk in chunks for token, *_ in chunk)


def _is_dropped(token: Any, width: int | None) -> bool:
    """ComfyUI leaves out an embedding of another model's width; what follows moves up."""
    return width is not None and isinstance(token, Tensor) and token.shape[-1] != width


def _marks(chunks: Chunks, width: int | None) -> Iterator[tuple[int, int]]:
    """Number among the tokens and binding id of every mark. Chunks follow each other."""
    chunk_start = 0
    for chunk in chunks:
        dropped = 0
        for position, (token, *_) in enumerate(chunk):
            if isinstance(token, MarkedToken):
                yield chunk_start + position - dropped, token.binding_id
            dropped += _is_dropped(token, width)
        chunk_start += len(chunk)
