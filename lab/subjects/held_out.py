"""Identities that were held out of all training, a prompt for each in each style, and its target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
        noise_seed: the picture starts from the same noise whatever draws it, in whatever batch.
    """

    subject: world.Placed
    scene: world.Scene
    noise_seed: tuple[int, ...]

    @property
    def target(self) -> world.Picture:
        """The one right picture."""
        return world.draw([self.subject], self.scene)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the subject is, `[32, 32]`."""
        return world.subject_mask(self.subject)

    def caption(self, noun: str | None = None) -> str:
        """Everything but the identity in words; the noun is the kind, or another word."""
        return world.caption([self.subject], self.scene, nouns=[noun] if noun else None)

    def full_caption(self) -> str:
        """The same, and the colour of every part."""
        parts = tuple(world.PARTS[self.subject.identity.kind])
        return world.caption([self.subject], self.scene, named=[parts])

    def target_in_style(self, style: str) -> world.Picture:
        """What would be right if the prompt asked for this style."""
        scene = world.Scene(style, self.scene.background, self.scene.prop)
        return world.draw([self.subject], scene)

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
            world.Placed(identity, str(draws.choice(tuple(world.PLACES)))),
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
            digest.update(f"{prompt.full_caption()} {prompt.caption('*')}".encode())
    return digest.hexdigest()
