"""Subjects beside something else that users put on a model, against the naive reference.

Everything that a node may have on both sides of Apply is a function of a MODEL (`Alter`) or of a
positive and a negative conditioning (`Prepare`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import reference
import scenes
import torch
from reference_separation import NaiveSeparation
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
    def naive_tables(self) -> NaiveSeparation | None:
        """For the reference, anew for each sampling; None where nobody competes."""
        return NaiveSeparation(self.separation) if self.separation else None

    @property
    def plain(self) -> str:
        """The prompt with nouns in the tokens' places."""
        return scenes.plain_prompt(self.prompt)


ALONE = Cast("a pencil drawing of <anna> in a coffee shop", {"<anna>": (5,)})
APART = Cast("<rex> and <anna>, <rex> again", {"<anna>": (3,), "<rex>": (1, 5)}, separation=1.0)
BY_NAME = {"alone": ALONE, "apart": APART}
MIXED = replace(APART, separation=0.0)
PROMPT, PLAIN = ALONE.prompt, ALONE.plain
(POSITION,) = ALONE.places["<anna>"]
NEGATIVE = "blurry"
TOLERANCE = 1e-4  # float32 against float64 over three sampler steps; measured 1e-6
VISIBLE = 5e-4  # what somebody's effect must exceed, so that a missing one is noticed
# As a share of what keeping subjects apart changes, which with little guidance is hardly more than
# the tolerance. Rounding was 0.6 % of it at most.
NOTICED = 0.02

Place = Literal["before", "behind"]
PLACES: tuple[Place, ...] = ("before", "behind")
Alter = Callable[[Any], Any]
Prepare = Callable[[Any, Any], tuple[Any, Any]]

# For laws of both families, the second of which tells nothing more about who owns a pixel.
FAMILIES_AND_CASTS = pytest.mark.parametrize(
    ("family", "cast"),
    [("sd15", ALONE), ("sdxl", ALONE), ("sd15", APART)],
    ids=["sd15", "sdxl", "sd15-apart"],
)
CASTS = pytest.mark.parametrize("cast", BY_NAME.values(), ids=BY_NAME)
FAMILIES_AND_NAMES = pytest.mark.parametrize(
    ("family", "cast"), [("sdxl", "alone"), ("sd15", "apart")]
)


def unaltered(model: Any) -> Any:
    return model


def as_they_are(positive: Any, negative: Any) -> tuple[Any, Any]:
    return positive, negative


def bindings(scene: scenes.Scene, subject: Any, cast: Cast, **inputs: Any) -> list[Any]:
    """Of everybody in the cast, with the same inputs of Bind Subject. The subject is Anna."""
    return [
        scene.bind(each, token, scenes.NOUNS[token], **inputs)
        for token, each in _subjects(scene, subject, cast).items()
    ]


def naive_slots(
    scene: scenes.Scene, subject: Any, cast: Cast, **settings: Any
) -> dict[int, reference.NaiveSubject]:
    """The same for the reference; settings as of `NaiveSubject`."""
    naive = {
        token: scene.naive(each, **settings)
        for token, each in _subjects(scene, subject, cast).items()
    }
    return {place: naive[token] for token, places in cast.places.items() for place in places}


def _subjects(scene: scenes.Scene, anna: Any, cast: Cast) -> dict[str, Any]:
    rex = {"<rex>": scene.subject(1, references=2)} if "<rex>" in cast.places else {}
    return {"<anna>": anna, **rex}


def sample_prompt(
    scene: scenes.Scene, model: Any, clip: Any, prompt: str, **sampling: Any
) -> Tensor:
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, NEGATIVE), **sampling)


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
    """Our Apply, and the other node before or behind it."""
    before = alter(scene.model) if place == "before" else scene.model
    bound = bindings(scene, subject, cast, **(binding or {}))
    model, clip = scene.apply(*bound, model=before, separation=cast.separation)
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
        slots = naive_slots(scene, subject, cast, **(settings or {}))
        rows = reference.rows_reading([(positive[0][0], slots)])
        model = reference.with_naive_subjects(model, scene.sites, rows, cast.naive_tables)
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

    So do two subjects that are kept apart, and it would be noticed if nobody kept them so.

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

    expected, mixed = (
        sample_naive(scene, subject, alter, prepare, settings, cast, **sampling)
        for cast in (APART, MIXED)
    )
    for place in places:
        found = sample_bound(scene, subject, alter, place, prepare, binding, APART, **sampling)
        assert_apart(found, expected, mixed, place)


def assert_apart(found: Tensor, expected: Tensor, mixed: Tensor, note: object = None) -> None:
    """Equality, within what keeping the subjects apart changes."""
    effect = scenes.relative_difference(mixed, expected)
    assert scenes.relative_difference(found, expected) < min(TOLERANCE, NOTICED * effect), note


def _sample(
    scene: scenes.Scene, model: Any, conditionings: tuple[Any, Any], sampling: dict[str, Any]
) -> Tensor:
    torch.manual_seed(0)  # some nodes draw from the global generator
    run = sampling.get("run", scene.sample)
    options = {name: value for name, value in sampling.items() if name != "run"}
    return run(model, *conditionings, **options)
