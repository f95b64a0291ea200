"""What is drawn: identities that nobody has seen, one prompt for each style, the right answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .. import world
from ..prompts import UNSEEN

# What a stream of random numbers is for: its third word, after UNSEEN and the evaluation's seed.
_SITTERS, _NOISE = 3, 4


@dataclass(frozen=True, eq=False)
class Order:
    """One picture to be drawn.

    Attributes:
        noise_seed: the picture starts from the same noise whatever draws it, in whatever company.
    """

    subject: world.Placed
    scene: world.Scene
    noise_seed: tuple[int, ...]

    @property
    def right(self) -> world.Picture:
        """The right answer."""
        return world.draw([self.subject], self.scene)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the subject is, `[32, 32]`."""
        return world.subject_mask(self.subject)

    def caption(self, noun: str | None = None) -> str:
        """A prompt that says everything but the identity; the noun is the kind, or another word."""
        return world.caption([self.subject], self.scene, nouns=[noun] if noun else None)

    def full_caption(self) -> str:
        """A prompt that names the colour of every part, too."""
        parts = tuple(world.PARTS[self.subject.identity.kind])
        return world.caption([self.subject], self.scene, named=[parts])

    def in_style(self, style: str) -> world.Picture:
        """What would be right if the prompt asked for this style."""
        scene = world.Scene(style, self.scene.background, self.scene.prop)
        return world.draw([self.subject], scene)

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """Of variance 1."""
        return np.random.default_rng(self.noise_seed).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Sitter:
    """An identity that nobody has seen, its one photograph, and an order in each style."""

    identity: world.Identity
    photograph: world.Picture
    orders: tuple[Order, ...]


@cache
def sitter(seed: int, index: int) -> Sitter:
    """Everything about it follows from the two numbers; training uses no stream like these."""
    draws = np.random.default_rng([UNSEEN, seed, _SITTERS, index])
    identity = world.random_identity(draws)
    photograph, _ = world.reference_picture(draws, identity)
    orders = tuple(
        Order(
            world.Placed(identity, str(draws.choice(tuple(world.PLACES)))),
            world.random_scene(draws, style),
            (UNSEEN, seed, _NOISE, index, number),
        )
        for number, style in enumerate(world.STYLES)
    )
    return Sitter(identity, photograph, orders)


def sitters(seed: int, count: int) -> list[Sitter]:
    """The first ones; a longer list begins with the shorter."""
    return [sitter(seed, index) for index in range(count)]


def fingerprint(seed: int, count: int = 4) -> str:
    """Changes when the world draws or describes its subjects in another way."""
    digest = hashlib.sha256()
    for each in sitters(seed, count):
        for picture in (each.photograph, *(order.right for order in each.orders)):
            digest.update(np.ascontiguousarray(picture).tobytes())
        for order in each.orders:
            digest.update(f"{order.full_caption()} {order.caption('*')}".encode())
    return digest.hexdigest()
