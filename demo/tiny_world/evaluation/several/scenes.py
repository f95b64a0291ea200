"""What is drawn: two or three subjects that nobody has seen, in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ... import world
from ...prompts import UNSEEN

# Streams of random numbers that neither training nor the other parts of the evaluation use.
_CAST, _NOISE = 5, 6


@dataclass(frozen=True)
class Setting:
    """A kind of scene.

    Attributes:
        casts: kinds of subjects from left to right; scenes take turns.
        places: where they stand.
        says_places: whether the prompt says who stands where. If not, the base model is one that
            was never told either, the prompt names the subjects from left to right or from right to
            left, and either way to place them is right.
    """

    name: str
    casts: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]
    says_places: bool


_ALIKE = (("person", "person"), ("dog", "dog"))
_KINDS = (("person", "dog"), ("dog", "person"))
_THREE = (("person", "person", "dog"), ("dog", "person", "dog"))
SETTINGS = {
    each.name: each
    for each in (
        Setting("two alike", _ALIKE, world.OPEN_PLACES, says_places=False),
        Setting("two kinds", _KINDS, world.OPEN_PLACES, says_places=False),
        Setting("two alike, places said", _ALIKE, world.OPEN_PLACES, says_places=True),
        Setting("three, places said", _THREE, tuple(world.PLACES), says_places=True),
    )
}


@dataclass(frozen=True, eq=False)
class Company:
    """Subjects in one picture, and a photograph of each.

    Attributes:
        noise_seed: the picture starts from the same noise whatever draws it.
    """

    setting: Setting
    placed: tuple[world.Placed, ...]
    photographs: tuple[world.Picture, ...]
    scene: world.Scene
    noise_seed: tuple[int, ...]

    @property
    def right(self) -> world.Picture:
        """The right answer with everybody in this place."""
        return world.draw(self.placed, self.scene)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """Of variance 1."""
        return np.random.default_rng(self.noise_seed).standard_normal(shape, dtype=np.float32)

    def caption(
        self, nouns: Sequence[str] | None = None, named: Sequence[Sequence[str]] | None = None
    ) -> str:
        """A prompt that says everything but who they are, unless parts are named."""
        says = self.setting.says_places
        return world.caption(self.placed, self.scene, named, nouns, says_places=says)

    def visible(self, index: int) -> NDArray[np.bool_]:
        """The pixels of a subject, `[32, 32]`; who stands further right stands in front."""
        mask = world.subject_mask(self.placed[index])
        for other in self.placed[index + 1 :]:
            mask = mask & ~world.subject_mask(other)
        return mask

    def arrangements(self) -> Iterator[Company]:
        """Every company that answers the prompt."""
        if self.setting.says_places:
            yield self
            return
        for order in itertools.permutations(range(len(self.placed))):
            placed = tuple(
                replace(self.placed[index], place=place)
                for index, place in zip(order, self.setting.places, strict=True)
            )
            yield replace(self, placed=placed)


@cache
def company(seed: int, name: str, index: int) -> Company:
    """Everything about it follows from these."""
    setting = SETTINGS[name]
    number = list(SETTINGS).index(name)
    draws = np.random.default_rng([UNSEEN, seed, _CAST, number, index])
    identities = [
        world.random_identity(draws, kind) for kind in setting.casts[index % len(setting.casts)]
    ]
    photographs = tuple(world.reference_picture(draws, each)[0] for each in identities)
    placed = tuple(
        world.Placed(each, place) for each, place in zip(identities, setting.places, strict=True)
    )
    noise_seed = (UNSEEN, seed, _NOISE, number, index)
    return Company(setting, placed, photographs, world.random_scene(draws), noise_seed)
