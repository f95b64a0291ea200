"""The ways of drawing that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .decoupled import with_decoupled_subjects
from .orders import Sitter
from .studio import Studio, run_node

SHIPPED = "shipped"
MAX_SITTERS = 32  # bindings that the Apply node takes
ABLATION_IDENTITIES = 64
STRENGTHS = (0.0, 0.375, 0.75, 1.125, 1.5)


@dataclass(frozen=True)
class Method(ABC):
    """A way to put sitters into pictures.

    Attributes:
        encoder: `shipped`, the name of an ablation whose encoder is used, or None.
    """

    name: str
    encoder: str | None = None

    @abstractmethod
    def prepare(
        self, studio: Studio, encoder: Any, sitters: Sequence[Sitter]
    ) -> tuple[Any, Any, list[str]]:
        """MODEL, CLIP, and a prompt for every order of every sitter."""


@dataclass(frozen=True)
class Words(Method):
    """The base model alone."""

    names_parts: bool = False

    def prepare(
        self, studio: Studio, encoder: Any, sitters: Sequence[Sitter]
    ) -> tuple[Any, Any, list[str]]:
        orders = [order for sitter in sitters for order in sitter.orders]
        captions = [
            order.full_caption() if self.names_parts else order.caption() for order in orders
        ]
        return studio.model, studio.clip, captions


@dataclass(frozen=True)
class Nested(Method):
    """This pack: a token for each sitter."""

    strength: float = 1.0

    def prepare(
        self, studio: Studio, encoder: Any, sitters: Sequence[Sitter]
    ) -> tuple[Any, Any, list[str]]:
        bindings, captions = {}, []
        for number, sitter in enumerate(sitters):
            token = f"<s{number}>"
            (bindings[f"binding_{number}"],) = run_node(
                "NestedAttention_BindSubject",
                subject=studio.encode_subject(encoder, sitter.photograph),
                token=token,
                noun=sitter.identity.kind,
                strength=self.strength,
            )
            captions += [order.caption(token) for order in sitter.orders]
        model, clip = run_node(
            "NestedAttention_Apply", model=studio.model, clip=studio.clip, bindings=bindings
        )
        return model, clip, captions


@dataclass(frozen=True)
class Decoupled(Method):
    """Decoupled cross-attention; its strength is IP-Adapter's scale."""

    strength: float = 1.0

    def prepare(
        self, studio: Studio, encoder: Any, sitters: Sequence[Sitter]
    ) -> tuple[Any, Any, list[str]]:
        tokens = [
            studio.encode_subject(encoder, sitter.photograph).tokens
            for sitter in sitters
            for _ in sitter.orders
        ]
        model = with_decoupled_subjects(studio.model, encoder, torch.stack(tokens), self.strength)
        captions = [order.caption() for sitter in sitters for order in sitter.orders]
        return model, studio.clip, captions


@torch.inference_mode()  # as ComfyUI executes nodes
def draw(
    studio: Studio, method: Method, encoder: Any, sitters: Sequence[Sitter]
) -> NDArray[np.float32]:
    """All orders of these sitters in one batch, `[orders, 32, 32, 3]` in [0, 1]."""
    model, clip, captions = method.prepare(studio, encoder, sitters)
    orders = [order for sitter in sitters for order in sitter.orders]
    return studio.draw(model, clip, captions, orders)


MAIN: tuple[Method, ...] = (
    Words("none"),
    Words("named", names_parts=True),
    Nested(SHIPPED, SHIPPED),
)
_OF_ENCODERS: tuple[Method, ...] = (
    Nested("one_token", "one_token"),
    Decoupled("decoupled", "decoupled"),
    *(
        Nested(name, name)
        for name in (
            "nested_4",
            "nested_16",
            "nested_64",
            "nested_16_scale_1",
            "nested_16_scale_2",
            "nested_16_scale_4",
        )
    ),
)
CURVES: dict[str, type[Nested] | type[Decoupled]] = {
    SHIPPED: Nested,
    "nested_16": Nested,
    "decoupled": Decoupled,
}


def at_strength(name: str, strength: float) -> str:
    """The name of a method at another strength than 1."""
    return f"{name}@{strength:g}"


_AT_STRENGTHS: tuple[Method, ...] = tuple(
    kind(at_strength(name, strength), name, strength=strength)
    for name, kind in CURVES.items()
    for strength in STRENGTHS
)
GROUPS = {
    "main": MAIN,
    "ablations": _OF_ENCODERS,
    "curve": _AT_STRENGTHS,
    "all": (*MAIN, *_OF_ENCODERS, *_AT_STRENGTHS),
}
METHODS = {method.name: method for method in GROUPS["all"]}


def chosen(names: Sequence[str]) -> list[Method]:
    """Methods by their names and those of groups, in the order of the table, each once."""
    wanted = {
        method.name for name in names for method in GROUPS.get(name, (METHODS.get(name),)) if method
    }
    return [method for method in GROUPS["all"] if method.name in wanted]


def identities_for(method: Method, identities: int) -> int:
    """How many identities a method draws: ablations and curves fewer."""
    return identities if method in MAIN else min(identities, ABLATION_IDENTITIES)
