"""The ways of drawing that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..ablations.decoupled import with_decoupled_subjects
from ..ablations.encoders import ABLATIONS
from ..subjects.held_out import HeldOut
from .studio import Studio, run_node

SHIPPED = "shipped"
MAX_SUBJECTS = 32  # bindings that the Apply node takes
ABLATION_IDENTITIES = 64
STRENGTHS = (0.0, 0.375, 0.75, 1.125, 1.5)


Prepared = tuple[Any, Any, list[str]]


@dataclass(frozen=True)
class Method(ABC):
    """A way to put subjects into pictures.

    Attributes:
        encoder: `shipped`, the name of an ablation whose encoder is used, or None.
    """

    name: str
    encoder: str | None = None

    @abstractmethod
    def prepare(self, studio: Studio, encoder: Any, subjects: Sequence[HeldOut]) -> Prepared:
        """MODEL, CLIP, and a caption for every prompt of every subject."""


@dataclass(frozen=True)
class Words(Method):
    """The base model alone."""

    names_parts: bool = False

    def prepare(self, studio: Studio, encoder: Any, subjects: Sequence[HeldOut]) -> Prepared:
        captions = [
            prompt.full_caption() if self.names_parts else prompt.caption()
            for subject in subjects
            for prompt in subject.prompts
        ]
        return studio.model, studio.clip, captions


@dataclass(frozen=True)
class Nested(Method):
    """This pack: a token for each subject."""

    strength: float = 1.0

    def prepare(self, studio: Studio, encoder: Any, subjects: Sequence[HeldOut]) -> Prepared:
        bindings: dict[str, Any] = {}
        captions: list[str] = []
        for number, subject in enumerate(subjects):
            token = f"<s{number}>"
            (bindings[f"binding_{number}"],) = run_node(
                "NestedAttention_BindSubject",
                subject=studio.encode_subject(encoder, subject.photograph),
                token=token,
                noun=subject.identity.kind,
                strength=self.strength,
            )
            captions += [prompt.caption([token]) for prompt in subject.prompts]
        model, clip = run_node(
            "NestedAttention_Apply", model=studio.model, clip=studio.clip, bindings=bindings
        )
        return model, clip, captions


@dataclass(frozen=True)
class Decoupled(Method):
    """Decoupled cross-attention; its strength is IP-Adapter's scale."""

    strength: float = 1.0

    def prepare(self, studio: Studio, encoder: Any, subjects: Sequence[HeldOut]) -> Prepared:
        tokens = [
            studio.encode_subject(encoder, subject.photograph).tokens
            for subject in subjects
            for _ in subject.prompts
        ]
        model = with_decoupled_subjects(studio.model, encoder, torch.stack(tokens), self.strength)
        captions = [prompt.caption() for subject in subjects for prompt in subject.prompts]
        return model, studio.clip, captions


@torch.inference_mode()  # as ComfyUI executes nodes
def draw(
    studio: Studio, method: Method, encoder: Any, subjects: Sequence[HeldOut]
) -> NDArray[np.float32]:
    """All prompts of these subjects in one batch, `[prompts, 32, 32, 3]` in [0, 1]."""
    model, clip, captions = method.prepare(studio, encoder, subjects)
    prompts = [prompt for subject in subjects for prompt in subject.prompts]
    return studio.draw(model, clip, captions, prompts)


MAIN: tuple[Method, ...] = (
    Words("none"),
    Words("named", names_parts=True),
    Nested(SHIPPED, SHIPPED),
)
_OF_ABLATIONS: tuple[Method, ...] = tuple(
    Decoupled(name, name) if ablation.decoupled else Nested(name, name)
    for name, ablation in ABLATIONS.items()
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
    "ablations": _OF_ABLATIONS,
    "curve": _AT_STRENGTHS,
    "all": (*MAIN, *_OF_ABLATIONS, *_AT_STRENGTHS),
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
