"""A subject beside something else that users put on a model, against the naive reference.

Everything that a node may have on both sides of Apply is a function of a MODEL (`Alter`) or of a
positive and a negative conditioning (`Prepare`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import reference
import scenes
import torch
from torch import Tensor

PROMPT = "a pencil drawing of <anna> in a coffee shop"
PLAIN = PROMPT.replace("<anna>", "woman")
POSITION = 5  # of "woman": start token, a, pencil, drawing, of, woman
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
    **sampling: Any,
) -> Tensor:
    """Our Apply, and the other node before or behind it."""
    before = alter(scene.model) if place == "before" else scene.model
    model, clip = scene.apply(scene.bind(subject, **(binding or {})), model=before)
    if place == "behind":
        model = alter(model)
    conditionings = prepare(scene.encode(clip, PROMPT), scene.encode(clip, NEGATIVE))
    return _sample(scene, model, conditionings, sampling)


def sample_naive(
    scene: scenes.Scene,
    subject: Any | None,
    alter: Alter = unaltered,
    prepare: Prepare = as_they_are,
    settings: dict[str, Any] | None = None,
    **sampling: Any,
) -> Tensor:
    """The other node on a model with the value table, or on the plain model without a subject."""
    positive, negative = (scene.encode(scene.clip, text) for text in (PLAIN, NEGATIVE))
    model = scene.model
    if subject is not None:
        slots = {POSITION: scene.naive(subject, **(settings or {}))}
        rows = reference.rows_reading([(positive[0][0], slots)])
        model = reference.with_naive_subjects(model, scene.sites, rows)
    return _sample(scene, alter(model), prepare(positive, negative), sampling)


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

    Args:
        binding: inputs of Bind Subject; `settings` is the same for the reference.
        acts: False for a node that changes nothing in a UNet and must merely not be in the way.
        sampling: options of `Scene.sample`, or `run`: another way to sample, given the model, both
            conditionings and these options.
    """
    subject = scene.subject()
    expected = sample_naive(scene, subject, alter, prepare, settings, **sampling)
    for place in places:
        found = sample_bound(scene, subject, alter, place, prepare, binding, **sampling)
        assert scenes.relative_difference(found, expected) < TOLERANCE, place
    without_subject = sample_naive(scene, None, alter, prepare, **sampling)
    assert scenes.relative_difference(without_subject, expected) > VISIBLE
    if acts:
        without_node = sample_naive(scene, subject, settings=settings, **sampling)
        assert scenes.relative_difference(without_node, expected) > VISIBLE


def _sample(
    scene: scenes.Scene, model: Any, conditionings: tuple[Any, Any], sampling: dict[str, Any]
) -> Tensor:
    torch.manual_seed(0)  # some nodes draw from the global generator
    run = sampling.get("run", scene.sample)
    options = {name: value for name, value in sampling.items() if name != "run"}
    return run(model, *conditionings, **options)
