"""Identities that were held out of all training, a prompt for each in each style, and its target."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tiny_world import world
from tiny_world.prompts import UNSEEN

# What a stream of random numbers is for: its third word, after UNSEEN and the evaluation's seed.
_SUBJECTS, _NOISE = 3, 4


@dataclass(frozen=True, eq=False)
class Prompt:
    """One picture to be drawn.

    Attributes:
        subjects: from left to right.
        photographs: one of each subject.
        noise_seed: the picture starts from the same noise whatever draws it, in whatever batch.
    """

    subjects: tuple[world.Placed, ...]
    photographs: tuple[world.Picture, ...]
    scene: world.Scene
    noise_seed: tuple[int, ...]
    says_places: bool = True

    @property
    def target(self) -> world.Picture:
        """The right picture."""
        return world.draw(self.subjects, self.scene)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the subjects are, `[32, 32]`."""
        return np.logical_or.reduce([world.subject_mask(placed) for placed in self.subjects])

    def in_style(self, style: str) -> Prompt:
        """The same in another style."""
        return replace(self, scene=replace(self.scene, style=style))

    def caption(
        self, nouns: Sequence[str] | None = None, named: Sequence[Sequence[str]] | None = None
    ) -> str:
        """Everything but the identities in words, unless parts are named."""
        return world.caption(self.subjects, self.scene, named, nouns, self.says_places)

    def full_caption(self) -> str:
        """The same, and the colour of every part."""
        parts = [tuple(world.PARTS[placed.identity.kind]) for placed in self.subjects]
        return self.caption(named=parts)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """Of variance 1."""
        return np.random.default_rng(self.noise_seed).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A held-out identity, its one photograph, and a prompt in each style."""

    identity: world.Identity
    photograph: world.Picture
    prompts: tuple[Prompt, ...]


@cache
def held_out_subject(seed: int, index: int) -> HeldOut:
    """Everything about it follows from the two numbers; training uses no stream like these."""
    draws = np.random.default_rng([UNSEEN, seed, _SUBJECTS, index])
    identity = world.random_identity(draws)
    photograph, _ = world.reference_picture(draws, identity)
    prompts = tuple(
        Prompt(
            (world.Placed(identity, str(draws.choice(tuple(world.PLACES)))),),
            (photograph,),
            world.random_scene(draws, style),
            (UNSEEN, seed, _NOISE, index, number),
        )
        for number, style in enumerate(world.STYLES)
    )
    return HeldOut(identity, photograph, prompts)


def held_out_subjects(seed: int, count: int) -> list[HeldOut]:
    """The first ones; a longer list begins with the shorter."""
    return [held_out_subject(seed, index) for index in range(count)]


def fingerprint(seed: int, count: int = 4) -> str:
    """Changes when the world draws or describes its subjects in another way."""
    digest = hashlib.sha256()
    for subject in held_out_subjects(seed, count):
        for picture in (subject.photograph, *(prompt.target for prompt in subject.prompts)):
            digest.update(np.ascontiguousarray(picture).tobytes())
        for prompt in subject.prompts:
            digest.update(f"{prompt.full_caption()} {prompt.caption(['*'])}".encode())
    return digest.hexdigest()
