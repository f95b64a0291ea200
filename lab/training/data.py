"""Endless training data of the tiny world, for the base model and for encoders.

Everything in sample n follows from the seed and n, so a run that goes on is the run that never
stopped, and two processes see what one with the same global batch sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_world import world
from torch import Tensor

from nested_core.preprocess import clip_pixels
from nested_core.training.base_model import SUBJECT, Caption, PictureSize
from nested_core.training.data.batches import Batch, Stripe
from nested_core.training.data.examples import seed_of

# Of the base model's captions: how many say nothing, and how many name every part's colour.
_EMPTY_SHARE, _ALL_NAMED_SHARE = 0.05, 0.4
_SEVERAL_SHARE = 0.25  # of its pictures show two or three subjects

# Of its subjects: how many are called by one colour ("red dog with blue ears"), named exceptions
# included. That teaches the subject's pixels to ask the noun for their colour; without it they give
# the noun next to no attention, and no value could speak through it.
_ONE_COLOUR_SHARE = 0.4

# The world grows while the base model learns: from which sample on it has other kinds than people,
# other places than the centre, other styles than photographs, and several subjects in a picture. In
# a small world the model learns within minutes that words say which colour a part has.
_GROWTH = {"kinds": 6_000, "places": 10_000, "styles": 14_000, "several": 22_000}
_GROWN = 1_000_000  # a sample beyond all that

# Of the pictures for a base model that is not told who stands where: how many leave it open, and in
# how many of those both are of one kind.
_OPEN_SHARE, _ALIKE_SHARE, _OPEN_STREAM = 0.7, 0.6, 77

Mask = NDArray[np.bool_]  # [32, 32]
_Sample = tuple[world.Picture, Mask, world.Picture, Caption, bool]


@dataclass(frozen=True, eq=False)
class BaseExamples:
    """Pictures in [-1, 1] `[batch, 3, 32, 32]`, masks of all subjects `[batch, 1, 32, 32]`, captions."""

    pixels: Tensor
    masks: Tensor
    captions: list[str]


def base_examples(seed: int, first: int, count: int) -> BaseExamples:
    """Samples `first` to `first + count` of the base model's stream."""
    return _joined([_base_example(seed, first + index) for index in range(count)])


def open_examples(seed: int, first: int, count: int) -> BaseExamples:
    """For a base model that is not told who stands where: most pictures show two subjects, at the
    left and at the right, and the caption names them in any order and without their places."""
    return _joined([_open_example(seed, first + index) for index in range(count)])


def _joined(examples: Sequence[tuple[world.Picture, Mask, str]]) -> BaseExamples:
    pictures, masks, captions = zip(*examples, strict=True)
    return BaseExamples(_pixels(pictures), _masks(masks), list(captions))


def _open_example(seed: int, number: int) -> tuple[world.Picture, Mask, str]:
    draws = np.random.default_rng([seed, _OPEN_STREAM, number])
    if draws.random() >= _OPEN_SHARE:
        return _base_example(seed, _GROWN + number)
    alike = str(draws.choice(world.KINDS)) if draws.random() < _ALIKE_SHARE else None
    subjects = [
        world.Placed(world.random_identity(draws, alike), place) for place in world.OPEN_PLACES
    ]
    scene = world.random_scene(draws)
    phrases = [_described(draws, subject) for subject in subjects]
    subjects = [subject for subject, _, _ in phrases]
    mask = np.logical_or.reduce([world.subject_mask(subject) for subject in subjects])
    named = [phrases[index] for index in draws.permutation(len(phrases))]
    cast, parts, nouns = zip(*named, strict=True)
    return (
        world.draw(subjects, scene),
        mask,
        world.caption(cast, scene, parts, nouns, says_places=False),
    )


def _base_example(seed: int, number: int) -> tuple[world.Picture, Mask, str]:
    draws = np.random.default_rng([seed, number])
    grown = {what for what, since in _GROWTH.items() if number >= since}
    several = draws.random() < _SEVERAL_SHARE and "several" in grown
    subjects = random_cast(draws, draws.integers(2, 4) if several else 1)
    if "places" not in grown:
        subjects = [world.Placed(subjects[0].identity, "centre")]
    if "kinds" not in grown:
        subjects = [world.Placed(world.random_identity(draws, "person"), "centre")]
    scene = world.random_scene(draws, None if "styles" in grown else "photo")
    says_nothing = draws.random() < _EMPTY_SHARE
    phrases = [_described(draws, subject) for subject in subjects]
    subjects, named, nouns = zip(*phrases, strict=True)
    words = "" if says_nothing else world.caption(subjects, scene, named, nouns)
    mask = np.logical_or.reduce([world.subject_mask(subject) for subject in subjects])
    return world.draw(subjects, scene), mask, words


def random_cast(draws: np.random.Generator, count: int | np.integer[Any]) -> list[world.Placed]:
    """Subjects at places of their own, from left to right."""
    chosen = sorted(draws.choice(len(world.PLACES), size=int(count), replace=False))
    places = list(world.PLACES)
    return [world.Placed(world.random_identity(draws), places[index]) for index in chosen]


def _described(
    draws: np.random.Generator, subject: world.Placed
) -> tuple[world.Placed, list[str], str]:
    """A subject, which of its parts are named, and what it is called."""
    kind = subject.identity.kind
    if draws.random() >= _ONE_COLOUR_SHARE:
        return subject, _some_parts(draws, subject.identity), kind
    colour, parts = world.random_colour(draws), list(world.PARTS[kind])
    others = [str(part) for part in draws.permutation(parts)[: draws.integers(0, 3)]]
    names = {part: world.random_colour(draws) if part in others else colour for part in parts}
    identity = world.identity_of(draws, kind, names)
    return world.Placed(identity, subject.place), others, f"{colour} {kind}"


def _some_parts(draws: np.random.Generator, identity: world.Identity) -> list[str]:
    parts = list(world.PARTS[identity.kind])
    share_all = draws.random() < _ALL_NAMED_SHARE
    count = len(parts) if share_all else int(draws.integers(0, len(parts) + 1))
    return [str(part) for part in draws.permutation(parts)[:count]]


@dataclass(frozen=True)
class SubjectData:
    """The trainer's `Data`: a subject in a scene, a photograph of it elsewhere, and a caption that
    says everything but who it is.

    Attributes:
        batch_size: samples per process and micro-step.
    """

    batch_size: int
    seed: int = 0
    drop_image: float = 0.05
    drop_text: float = 0.05

    def batches(self, resume: Any, stripe: Stripe) -> Iterator[Batch]:
        """From sample `resume["slot"]` on; processes take turns, batch by batch."""
        first = 0 if resume is None else int(resume["slot"])
        step = self.batch_size * stripe.num_processes
        while True:
            batch = self._batch(first + stripe.process * self.batch_size)
            first += step
            batch.resume = {"slot": first}
            yield batch

    def some_captions(self, count: int) -> Sequence[Caption]:
        """The first captions."""
        return self._batch(0, count).captions

    def _batch(self, first: int, count: int | None = None) -> Batch:
        slots = range(first, first + (count or self.batch_size))
        samples = [self._sample(np.random.default_rng([self.seed, 1, slot])) for slot in slots]
        pictures, masks, references, captions, dropped = zip(*samples, strict=True)
        return Batch(
            pixels=_pixels(pictures),
            reference_pixels=clip_pixels(torch.from_numpy(np.stack(references)), world.SIZE),
            captions=list(captions),
            masks=_masks(masks),
            image_dropped=torch.tensor(dropped),
            sizes=[_WHOLE] * len(samples),
            seeds=[seed_of("noise", self.seed, slot) for slot in slots],
        )

    def _sample(self, draws: np.random.Generator) -> _Sample:
        (subject,) = random_cast(draws, 1)
        scene = world.random_scene(draws)
        text = world.caption([subject], scene, nouns=[SUBJECT])
        drops_image, drops_text = draws.random(2) < (self.drop_image, self.drop_text)
        return (
            world.draw([subject], scene),
            world.subject_mask(subject),
            world.reference_picture(draws, subject.identity)[0],
            Caption(SUBJECT if drops_text else text, subject.identity.kind),
            bool(drops_image),
        )


_WHOLE = PictureSize(world.SIZE, world.SIZE, 0, 0, world.SIZE, world.SIZE)


def _pixels(pictures: Sequence[world.Picture]) -> Tensor:
    # Contiguous: another order in memory makes the UNet's convolutions a third slower.
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous() * 2.0 - 1.0


def _masks(masks: Sequence[Mask]) -> Tensor:
    return torch.from_numpy(np.stack(masks))[:, None].float()
