"""Two subjects in prompts, each prompt encoded by the bound CLIP and by the plain one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pack
import reference
import scenes
import torch

TOLERANCE = 1e-4  # float32 against float64 over two sampler steps; measured 1e-6
ROUNDING = 1e-5  # float32, other sizes of the same matrix products
VISIBLE = 1e-3  # what the subjects must change, so that a missing one is noticed
LONG = "very " * 80
LONGER = "very " * 160


class Pair(NamedTuple):
    """One conditioning from the bound text encoder, and from the plain one for the noun prompt."""

    bound: Any
    plain: Any

    @property
    def context(self) -> torch.Tensor:
        return self.plain[0][0]


@dataclass(frozen=True)
class Two:
    """A checkpoint with two subjects bound to it."""

    scene: scenes.Scene
    anna: Any
    rex: Any
    model: Any
    clip: Any

    def encode(self, text: str) -> Pair:
        plain = self.scene.encode(self.scene.clip, scenes.plain_prompt(text))
        return Pair(self.scene.encode(self.clip, text), plain)

    def naive(self, token: str, **settings: Any) -> reference.NaiveSubject:
        return self.scene.naive({"<anna>": self.anna, "<rex>": self.rex}[token], **settings)

    def slots(self, rows: dict[int, str], **settings: Any) -> dict[int, reference.NaiveSubject]:
        return {row: self.naive(token, **settings) for row, token in rows.items()}


def make_two(family: str, seed: int = 0, scene: scenes.Scene | None = None, **binding: Any) -> Two:
    scene = scenes.make_scene(family) if scene is None else scene
    scene.steps = 2
    anna, rex = scene.subject(seed), scene.subject(seed + 1)
    bindings = [
        scene.bind(subject, token, noun, **binding)
        for subject, (token, noun) in zip((anna, rex), scenes.NOUNS.items(), strict=True)
    ]
    return Two(scene, anna, rex, *scene.apply(*bindings))


@functools.cache
def two_of(family: str) -> Two:
    return make_two(family)


def through(
    node: str, *pairs: Pair, names: Sequence[str] = ("conditioning",), **inputs: Any
) -> Pair:
    """What one of ComfyUI's nodes makes of either side."""
    sides = zip(*pairs, strict=True)
    return Pair(
        *(pack.run_host(node, **dict(zip(names, side, strict=True)), **inputs) for side in sides)
    )


def combine(first: Pair, second: Pair) -> Pair:
    names = ("conditioning_1", "conditioning_2")
    return through("ConditioningCombine", first, second, names=names)


def to_from(node: str, to: Pair, source: Pair, **inputs: Any) -> Pair:
    names = ("conditioning_to", "conditioning_from")
    return through(node, to, source, names=names, **inputs)


def assert_equals_the_value_table(
    two: Two,
    positive: Pair,
    negative: Pair,
    known: Sequence[tuple[torch.Tensor, dict[int, reference.NaiveSubject]]],
    **sampling: Any,
) -> None:
    """`known`: the contexts that bound rows read, and the subjects in them."""
    found = two.scene.sample(two.model, positive.bound, negative.bound, **sampling)
    rows = reference.rows_reading(known)
    expected = two.scene.sample_naively(rows, positive.plain, negative.plain, **sampling)
    host = two.scene.sample(two.scene.model, positive.plain, negative.plain, **sampling)
    assert scenes.relative_difference(found, expected) < TOLERANCE
    assert scenes.relative_difference(host, expected) > VISIBLE


def assert_is_exactly_the_host(two: Two, positive: Pair, negative: Pair) -> None:
    found = two.scene.sample(two.model, positive.bound, negative.bound)
    host = two.scene.sample(two.scene.model, positive.plain, negative.plain)
    assert torch.equal(found, host)


def warnings_of(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "Nested Attention" in record.getMessage()
    ]
