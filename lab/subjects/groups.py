"""Two or three held-out subjects in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tiny_world import world
from tiny_world.prompts import UNSEEN

# Streams of random numbers that neither training nor `held_out.py` uses.
_SUBJECTS, _NOISE = 5, 6


@dataclass(frozen=True)
class Setting:
    """A kind of picture.

    Attributes:
        casts: kinds of subjects from left to right; pictures take turns.
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
    setting.name: setting
    for setting in (
        Setting("two alike", _ALIKE, world.OPEN_PLACES, says_places=False),
        Setting("two kinds", _KINDS, world.OPEN_PLACES, says_places=False),
        Setting("two alike, places said", _ALIKE, world.OPEN_PLACES, says_places=True),
        Setting("three, places said", _THREE, tuple(world.PLACES), says_places=True),
    )
}


@dataclass(frozen=True, eq=False)
class GroupPrompt:
    """One picture to be drawn, and a photograph of each of its subjects.

    Attributes:
        noise_seed: the picture starts from the same noise whatever draws it.
    """

    setting: Setting
    subjects: tuple[world.Placed, ...]
    photographs: tuple[world.Picture, ...]
    scene: world.Scene
    noise_seed: tuple[int, ...]

    @property
    def target(self) -> world.Picture:
        """The right picture with everybody in this place."""
        return world.draw(self.subjects, self.scene)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """Of variance 1."""
        return np.random.default_rng(self.noise_seed).standard_normal(shape, dtype=np.float32)

    def caption(
        self, nouns: Sequence[str] | None = None, named: Sequence[Sequence[str]] | None = None
    ) -> str:
        """Everything but who they are in words, unless parts are named."""
        says = self.setting.says_places
        return world.caption(self.subjects, self.scene, named, nouns, says_places=says)

    def full_caption(self) -> str:
        """The same, and the colour of every part."""
        parts = [tuple(world.PARTS[subject.identity.kind]) for subject in self.subjects]
        return self.caption(named=parts)

    def visible(self, index: int) -> NDArray[np.bool_]:
        """The pixels of a subject, `[32, 32]`; who stands further right stands in front."""
        mask = world.subject_mask(self.subjects[index])
        for other in self.subjects[index + 1 :]:
            mask = mask & ~world.subject_mask(other)
        return mask

    def arrangements(self) -> Iterator[GroupPrompt]:
        """The group in every way that answers the prompt."""
        if self.setting.says_places:
            yield self
            return
        for order in itertools.permutations(self.subjects):
            subjects = tuple(
                replace(subject, place=place)
                for subject, place in zip(order, self.setting.places, strict=True)
            )
            yield replace(self, subjects=subjects)


@cache
def group_prompt(seed: int, name: str, index: int) -> GroupPrompt:
    """Everything about it follows from the seed, the setting's name and the number."""
    setting = SETTINGS[name]
    number = list(SETTINGS).index(name)
    draws = np.random.default_rng([UNSEEN, seed, _SUBJECTS, number, index])
    kinds = setting.casts[index % len(setting.casts)]
    identities = [world.random_identity(draws, kind) for kind in kinds]
    photographs = tuple(world.reference_picture(draws, identity)[0] for identity in identities)
    subjects = tuple(
        world.Placed(identity, place)
        for identity, place in zip(identities, setting.places, strict=True)
    )
    noise_seed = (UNSEEN, seed, _NOISE, number, index)
    return GroupPrompt(setting, subjects, photographs, world.random_scene(draws), noise_seed)
