"""Which methods are compared, for each of the world's base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tiny_world.files import UNET

from ..ablations.encoders import DECOUPLED, NESTED, Ablation, ablations_of
from .methods import SHIPPED, Decoupled, Method, Nested, OtherWay, Words

ABLATION_IDENTITIES = 64
STRENGTHS = (0.0, 0.375, 0.75, 1.125, 1.5)

MAIN: tuple[Method, ...] = (
    Words("none"),
    Words("named", names_parts=True),
    Nested(SHIPPED, SHIPPED),
)


# What nested attention is compared with at other strengths and with several subjects, and which
# encoders of nested attention have curves: those of the same budget.
_OTHERS = {UNET: (DECOUPLED,), "cross": (DECOUPLED, "joined"), "joint": ("decoupled_long",)}
_CURVES = {UNET: ("nested_16",), "cross": ("nested_16",), "joint": ("nested_16", "nested_16_long")}


def at_strength(name: str, strength: float) -> str:
    """The name of a method at another strength than 1."""
    return f"{name}@{strength:g}"


def _drawn_with(name: str, of: str, ablation: Ablation, model: str, strength: float) -> Method:
    """The method that an ablation's encoder was trained for."""
    if ablation.way == NESTED:
        return Nested(name, of, strength=strength, sites=ablation.sites)
    if model == UNET:
        return Decoupled(name, of, strength)
    return OtherWay(name, of, ablation.way, strength)


@dataclass(frozen=True)
class Catalogue:
    """The methods of one base model.

    Attributes:
        curves: names of those that are drawn at several strengths.
        several: of several subjects in a picture. They have a table of their own, and names of their
            own in it.
    """

    ablations: tuple[Method, ...]
    curves: tuple[str, ...]
    at_strengths: tuple[Method, ...]
    several: tuple[Method, ...]

    @property
    def groups(self) -> Mapping[str, tuple[Method, ...]]:
        """By the names that the command takes."""
        return {
            "main": MAIN,
            "ablations": self.ablations,
            "curve": self.at_strengths,
            "all": (*MAIN, *self.ablations, *self.at_strengths),
        }

    @property
    def methods(self) -> Mapping[str, Method]:
        """All of them by name, in the order of the table."""
        return {method.name: method for method in self.groups["all"]}

    def chosen(self, names: Sequence[str]) -> list[Method]:
        """Methods by their names and those of groups, in the order of the table, each once."""
        groups, methods = self.groups, self.methods
        wanted = {
            method.name
            for name in names
            for method in groups.get(name, (methods.get(name),))
            if method
        }
        return [method for method in groups["all"] if method.name in wanted]


@cache
def catalogue(model: str = UNET) -> Catalogue:
    """The methods of one of the world's base models."""
    ablations = ablations_of(model)
    others = _OTHERS[model]
    curves = (SHIPPED, *_CURVES[model], *others)
    of_curves = {name: ablations.get(name, Ablation()) for name in curves}

    def drawn(name: str, strength: float = 1.0) -> Method:
        called = name if strength == 1.0 else at_strength(name, strength)
        ablation = of_curves.get(name) or ablations[name]
        return _drawn_with(called, name, ablation, model, strength)

    return Catalogue(
        tuple(map(drawn, ablations)),
        curves,
        tuple(drawn(name, strength) for name in curves for strength in STRENGTHS),
        (
            Words("words", names_parts=True),
            *(drawn(name) for name in others),
            Nested("nested", SHIPPED),
            Nested("nested, masks", SHIPPED, masks=True),
            Nested("nested, separation", SHIPPED, separation=1.0),
            Nested("nested, masks and separation", SHIPPED, separation=1.0, masks=True),
        ),
    )


def identities_for(method: Method, identities: int, others: int = ABLATION_IDENTITIES) -> int:
    """How many identities a method draws: ablations and curves fewer."""
    return identities if method in MAIN else min(identities, others)
