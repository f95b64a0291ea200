"""Two or three held-out subjects in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tiny_world import world
from tiny_world.prompts import UNSEEN

from .held_out import Prompt

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

    casts: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]
    says_places: bool


_ALIKE = (("person", "person"), ("dog", "dog"))
_KINDS = (("person", "dog"), ("dog", "person"))
_THREE = (("person", "person", "dog"), ("dog", "person", "dog"))
SETTINGS = {
    "two alike": Setting(_ALIKE, world.OPEN_PLACES, says_places=False),
    "two kinds": Setting(_KINDS, world.OPEN_PLACES, says_places=False),
    "two alike, places said": Setting(_ALIKE, world.OPEN_PLACES, says_places=True),
    "three, places said": Setting(_THREE, tuple(world.PLACES), says_places=True),
}


class GroupPrompt(Prompt):
    """One picture of several subjects."""

    def visible(self, index: int) -> NDArray[np.bool_]:
        """The pixels of a subject, `[32, 32]`; who stands further right stands in front."""
        mask = world.subject_mask(self.subjects[index])
        for other in self.subjects[index + 1 :]:
            mask = mask & ~world.subject_mask(other)
        return mask

    def arrangements(self) -> Iterator[GroupPrompt]:
        """The group in every way that answers the prompt."""
        if self.says_places:
            yield self
            return
        places = [placed.place for placed in self.subjects]
        for order in itertools.permutations(self.subjects):
            moved = zip(order, places, strict=True)
            subjects = tuple(replace(placed, place=place) for placed, place in moved)
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
    return GroupPrompt(
        tuple(itertools.starmap(world.Placed, zip(identities, setting.places, strict=True))),
        photographs,
        world.random_scene(draws),
        (UNSEEN, seed, _NOISE, number, index),
        setting.says_places,
    )
