"""The words of a prompt, riding on the tokens that were made of them.

A tokens dict keeps exactly ComfyUI's keys, since nodes iterate over them and exchange them one by
one. So the words ride where the bound tokens' marks do: on a token id, here that of each chunk's
start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....nested_core.diagnosis import PromptText
from ....nested_core.prompt import MarkedToken

Chunk = Sequence[tuple[Any, ...]]


class PromptStart(int):
    """A start token that remembers its prompt; to everybody else it is the plain id."""

    prompt: PromptText
    chunk: tuple[Any, ...]

    def __new__(cls, token_id: int, prompt: PromptText, chunk: tuple[Any, ...]) -> PromptStart:
        start = super().__new__(cls, token_id)
        start.prompt, start.chunk = prompt, chunk
        return start

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptStart, (int(self), self.prompt, self.chunk)


def with_starts(
    tokens: Mapping[str, Sequence[Chunk]], prompt: PromptText
) -> dict[str, list[list[tuple[Any, ...]]]]:
    """The same tokens; the first of each chunk remembers the prompt."""
    return {
        encoder: [_started(chunk, prompt) for chunk in chunks] for encoder, chunks in tokens.items()
    }


def _started(chunk: Chunk, prompt: PromptText) -> list[tuple[Any, ...]]:
    if not chunk or type(chunk[0][0]) is not int:
        return list(chunk)
    (first, *rest), ids = chunk[0], _ids(chunk)
    return [(PromptStart(first, prompt, ids), *rest), *chunk[1:]]


def texts_in(tokens: Mapping[str, Sequence[Chunk]]) -> Iterator[PromptText]:
    """The prompts that tokens were made of, and whether a node has exchanged words since.

    Only where a subject is bound: there it is told that the text is another one.
    """
    for chunks in tokens.values():
        for chunk in chunks:
            start = chunk[0][0] if chunk else None
            if isinstance(start, PromptStart):
                is_bound = any(isinstance(token, MarkedToken) for token, *_ in chunk)
                yield replace(start.prompt, changed=is_bound and _ids(chunk) != start.chunk)


def _ids(chunk: Chunk) -> tuple[Any, ...]:
    """Token ids; embeddings are vectors, of which only the place counts."""
    return tuple(int(token) if isinstance(token, int) else None for token, *_ in chunk)
