"""The ways of drawing that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_world import world

from ..ablations.decoupled import with_decoupled_subjects
from ..ablations.encoders import ABLATIONS
from ..subjects.held_out import Prompt
from .studio import Studio, run_node

SHIPPED = "shipped"
ABLATION_IDENTITIES = 64
STRENGTHS = (0.0, 0.375, 0.75, 1.125, 1.5)
_MARGIN = 1  # pixels around the box that a user would paint

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
    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        """MODEL, CLIP, and a caption for every prompt."""


@dataclass(frozen=True)
class Words(Method):
    """The base model alone."""

    names_parts: bool = False

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        captions = [
            prompt.full_caption() if self.names_parts else prompt.caption() for prompt in prompts
        ]
        return studio.model, studio.clip, captions


@dataclass(frozen=True)
class Nested(Method):
    """This pack: a token for each subject.

    Attributes:
        masks: whether each subject's box is painted by hand.
    """

    strength: float = 1.0
    separation: float = 0.0
    masks: bool = False

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        bindings: dict[str, Any] = {}
        tokens: dict[int, str] = {}  # by photograph: several prompts may show one subject
        captions: list[str] = []
        for prompt in prompts:
            for placed, photograph in zip(prompt.subjects, prompt.photographs, strict=True):
                if id(photograph) in tokens:
                    continue
                tokens[id(photograph)] = token = f"<s{len(bindings)}>"
                (bindings[f"binding_{len(bindings)}"],) = run_node(
                    "NestedAttention_BindSubject",
                    subject=studio.encode_subject(encoder, photograph),
                    token=token,
                    noun=placed.identity.kind,
                    strength=self.strength,
                    mask=_box(placed) if self.masks else None,
                )
            captions.append(prompt.caption([tokens[id(each)] for each in prompt.photographs]))
        model, clip = run_node(
            "NestedAttention_Apply",
            model=studio.model,
            clip=studio.clip,
            bindings=bindings,
            separation=self.separation,
        )
        return model, clip, captions


def _box(placed: world.Placed) -> torch.Tensor:
    """What somebody would paint in a second, `[1, 32, 32]`."""
    rows, columns = np.nonzero(world.subject_mask(placed))
    mask = torch.zeros(1, world.SIZE, world.SIZE)
    top, left = max(rows.min() - _MARGIN, 0), max(columns.min() - _MARGIN, 0)
    mask[:, top : rows.max() + 1 + _MARGIN, left : columns.max() + 1 + _MARGIN] = 1.0
    return mask


@dataclass(frozen=True)
class Decoupled(Method):
    """Decoupled cross-attention; its strength is IP-Adapter's scale."""

    strength: float = 1.0

    def prepare(self, studio: Studio, encoder: Any, prompts: Sequence[Prompt]) -> Prepared:
        tokens = [
            torch.cat([studio.encode_subject(encoder, each).tokens for each in prompt.photographs])
            for prompt in prompts
        ]
        model = with_decoupled_subjects(studio.model, encoder, torch.stack(tokens), self.strength)
        return model, studio.clip, [prompt.caption() for prompt in prompts]


@torch.inference_mode()  # as ComfyUI executes nodes
def draw(
    studio: Studio, method: Method, encoder: Any, prompts: Sequence[Prompt]
) -> NDArray[np.float32]:
    """Pictures `[prompts, 32, 32, 3]` in [0, 1], all in one run of the sampler."""
    return studio.draw(*method.prepare(studio, encoder, prompts), prompts)


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

# Of several subjects in a picture. They have a table of their own, and names of their own in it.
OF_SEVERAL: tuple[Method, ...] = (
    Words("words", names_parts=True),
    Decoupled("decoupled", "decoupled"),
    Nested("nested", SHIPPED),
    Nested("nested, masks", SHIPPED, masks=True),
    Nested("nested, separation", SHIPPED, separation=1.0),
    Nested("nested, masks and separation", SHIPPED, separation=1.0, masks=True),
)


def chosen(names: Sequence[str]) -> list[Method]:
    """Methods by their names and those of groups, in the order of the table, each once."""
    wanted = {
        method.name for name in names for method in GROUPS.get(name, (METHODS.get(name),)) if method
    }
    return [method for method in GROUPS["all"] if method.name in wanted]


def identities_for(method: Method, identities: int) -> int:
    """How many identities a method draws: ablations and curves fewer."""
    return identities if method in MAIN else min(identities, ABLATION_IDENTITIES)
