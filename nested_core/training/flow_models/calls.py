"""One call of a transformer: what its attention layers need to know while it runs.

Not every transformer of diffusers hands arguments on to its layers, so the call is kept beside them.
Gradient checkpointing runs a block once more in the backward pass, in the end from another thread:
there the block finds the call again that it belonged to, whatever has been called since.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.checkpoint import (
    checkpoint,  # pyright: ignore[reportUnknownVariableType]
)

from ..nested_attention import JointSubjects


@dataclass(frozen=True, eq=False)
class Call:
    """Attributes:
    subjects: that act in it.
    num_text_tokens: where one stream holds text and picture.
    num_pixels: of the picture, in patches.
    """

    subjects: JointSubjects | None
    num_text_tokens: int
    num_pixels: int


_current: ContextVar[Call | None] = ContextVar("call of a transformer", default=None)


def current_call() -> Call:
    """The call under way."""
    call = _current.get()
    assert call is not None, "a transformer's layers run within a call"
    return call


@contextmanager
def during(call: Call) -> Generator[None, None, None]:
    """The call is under way."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def checkpointed(block: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a block and forgets its activations; in the backward pass it runs in the same call again."""
    call = current_call()

    def run(*arguments: Any) -> Any:
        with during(call):
            return block(*arguments)

    return cast("Any", checkpoint(run, *arguments, use_reentrant=False))
