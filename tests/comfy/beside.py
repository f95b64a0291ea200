"""Subjects beside something else that users put on a model, against the naive reference.

Everything that a node may have on both sides of Apply is a function of a MODEL (`Alter`) or of a
positive and a negative conditioning (`Prepare`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import reference
import scenes
import torch
from naive_owners import NaiveOwners
from torch import Tensor


@dataclass(frozen=True)
class Cast:
    """Who is in the prompt.

    Attributes:
        places: of each token among the text tokens, the start token being 0.
        separation: of Apply.
    """

    prompt: str
    places: Mapping[str, tuple[int, ...]]
    separation: float = 0.0

    @property
    def plain(self) -> str:
        """The prompt with nouns in the tokens' places."""
        return self.prompt.replace("<anna>", "woman").replace("<rex>", "dog")


PROMPT = "a pencil drawing of <anna> in a coffee shop"
POSITION = 5
ALONE = Cast(PROMPT, {"<anna>": (POSITION,)})
APART = Cast("<rex> and <anna>, <rex> again", {"<anna>": (3,), "<rex>": (1, 5)}, separation=1.0)
PLAIN = ALONE.plain
NEGATIVE = "blurry"
TOLERANCE = 1e-4  # float32 against float64 over three sampler steps; measured 1e-6
VISIBLE = 5e-4  # what somebody's effect must exceed, so that a missing one is noticed

Place = Literal["before", "behind"]
PLACES: tuple[Place, ...] = ("before", "behind")
Alter = Callable[[Any], Any]
Prepare = Callable[[Any, Any], tuple[Any, Any]]


def unaltered(model: Any) -> Any:
    return model


def as_they_are(positive: Any, negative: Any) -> tuple[Any, Any]:
    return positive, negative


def sample_bound(
    scene: scenes.Scene,
    subject: Any,
    alter: Alter = unaltered,
    place: Place = "behind",
    prepare: Prepare = as_they_are,
    binding: dict[str, Any] | None = None,
    cast: Cast = ALONE,
    **sampling: Any,
) -> Tensor:
    """Our Apply, and the other node before or behind it. The subject is Anna."""
    before = alter(scene.model) if place == "before" else scene.model
    bindings = [
        scene.bind(each, token, "woman" if token == "<anna>" else "dog", **(binding or {}))
        for token, each in _subjects(scene, subject, cast).items()
    ]
    model, clip = scene.apply(*bindings, model=before, separation=cast.separation)
    if place == "behind":
        model = alter(model)
    conditionings = prepare(scene.encode(clip, cast.prompt), scene.encode(clip, NEGATIVE))
    return _sample(scene, model, conditionings, sampling)


def sample_naive(
    scene: scenes.Scene,
    subject: Any | None,
    alter: Alter = unaltered,
    prepare: Prepare = as_they_are,
    settings: dict[str, Any] | None = None,
    cast: Cast = ALONE,
    **sampling: Any,
) -> Tensor:
    """The other node on a model with the value table, or on the plain model without a subject."""
    positive, negative = (scene.encode(scene.clip, text) for text in (cast.plain, NEGATIVE))
    model = scene.model
    if subject is not None:
        slots: dict[int, Any] = {}
        for token, each in _subjects(scene, subject, cast).items():
            slots |= dict.fromkeys(cast.places[token], scene.naive(each, **(settings or {})))
        rows = reference.rows_reading([(positive[0][0], slots)])
        owners = NaiveOwners(cast.separation, (scene.height, scene.width))
        make_tables = owners if cast.separation else None
        model = reference.with_naive_subjects(model, scene.sites, rows, make_tables)
    return _sample(scene, alter(model), prepare(positive, negative), sampling)


def _subjects(scene: scenes.Scene, anna: Any, cast: Cast) -> dict[str, Any]:
    subjects = {"<anna>": anna}
    if "<rex>" in cast.places:
        subjects["<rex>"] = scene.subject(1, references=2)
    return subjects


def assert_composes(
    scene: scenes.Scene,
    alter: Alter = unaltered,
    prepare: Prepare = as_they_are,
    places: Sequence[Place] = PLACES,
    binding: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    acts: bool = True,
    **sampling: Any,
) -> None:
    """Subject and node together equal the reference, and either one missing would be noticed.

    So do two subjects that are kept apart, and that nobody keeps them apart would be noticed.

    Args:
        binding: inputs of Bind Subject; `settings` is the same for the reference.
        acts: False for a node that changes nothing in a UNet and must merely not be in the way.
        sampling: options of `Scene.sample`, or `run`: another way to sample, given the model, both
            conditionings and these options.
    """
    subject = scene.subject()
    for cast in (ALONE, APART):
        expected = sample_naive(scene, subject, alter, prepare, settings, cast, **sampling)
        if cast.separation:
            # Seldom large: it acts from the second step on, and random models decide little.
            mixed = replace(cast, separation=0.0)
            without = sample_naive(scene, subject, alter, prepare, settings, mixed, **sampling)
            tolerance = min(TOLERANCE, scenes.relative_difference(without, expected) / 5)
        else:
            without = sample_naive(scene, None, alter, prepare, **sampling)
            assert scenes.relative_difference(without, expected) > VISIBLE
            tolerance = TOLERANCE
        for place in places:
            found = sample_bound(scene, subject, alter, place, prepare, binding, cast, **sampling)
            assert scenes.relative_difference(found, expected) < tolerance, (place, cast)
    if acts:
        with_node = sample_naive(scene, subject, alter, prepare, settings, **sampling)
        without_node = sample_naive(scene, subject, settings=settings, **sampling)
        assert scenes.relative_difference(without_node, with_node) > VISIBLE


def _sample(
    scene: scenes.Scene, model: Any, conditionings: tuple[Any, Any], sampling: dict[str, Any]
) -> Tensor:
    torch.manual_seed(0)  # some nodes draw from the global generator
    run = sampling.get("run", scene.sample)
    options = {name: value for name, value in sampling.items() if name != "run"}
    return run(model, *conditionings, **options)
