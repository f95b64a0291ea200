"""Subjects in a diffusion transformer beside something else on its MODEL or its conditionings.

Against the value table, whose rows are told by the text that they read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from bound_transformers import (
    PLAIN,
    TEXT,
    apply,
    assert_equal,
    bind,
    make_encoder,
    make_subject,
    naive,
    rows_of,
)
from dit_scene import NEGATIVE, TransformerScene
from joint_value_table import CONTEXT, JointValueTable, RowSlots, Slots
from torch import Tensor

Alter = Callable[[Any], Any]
Prepare = Callable[[Any, Any], tuple[Any, Any]]
Known = Sequence[tuple[Tensor, Slots]]


def unaltered(model: Any) -> Any:
    return model


def as_they_are(positive: Any, negative: Any) -> tuple[Any, Any]:
    return positive, negative


def rows_reading(known: Known) -> RowSlots:
    """Rows have the slots of the text that theirs begins with, `[tokens, width]`."""

    def row_slots(options: dict[str, Any], num_rows: int) -> Sequence[Slots]:
        context = options[CONTEXT]
        assert len(context) == num_rows
        return [slots_of(row, known) for row in context]

    return row_slots


def slots_of(row: Tensor, known: Known) -> Slots:
    """The subjects of one row."""
    for text, slots in known:
        begin = row[: len(text)]
        if begin.shape == text.shape and torch.equal(begin, text.to(begin)):
            return slots
    return {}


def sample_bound(
    scene: TransformerScene,
    subject: Any,
    alter: Alter = unaltered,
    place: str = "behind",
    prepare: Prepare = as_they_are,
    binding: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Tensor:
    """Our Apply, and the other node before or behind it."""
    before = alter(scene.model) if place == "before" else scene.model
    model, clip = apply(scene, bind(subject, **(binding or {})), model=before)
    model = alter(model) if place == "behind" else model
    texts = prepare(scene.encode(TEXT, clip), scene.encode(NEGATIVE, clip))
    return scene.sample(model, *texts, **sampling)


def sample_naive(
    scene: TransformerScene,
    subject: Any | None,
    alter: Alter = unaltered,
    prepare: Prepare = as_they_are,
    settings: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> Tensor:
    """The other node on a model with the value table, or on the plain model without a subject."""
    positive, negative = scene.encode(PLAIN), scene.encode(NEGATIVE)
    model = scene.model
    if subject is not None:
        slots = dict.fromkeys(rows_of(scene), naive(subject, **(settings or {})))
        known = [(scene.context(positive), slots)]
        model = JointValueTable(rows_reading(known)).on(model)
    return scene.sample(alter(model), *prepare(positive, negative), **sampling)


def assert_composes(
    scene: TransformerScene,
    alter: Alter = unaltered,
    prepare: Prepare = as_they_are,
    places: Sequence[str] = ("before", "behind"),
    binding: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    acts: bool = True,
    **sampling: Any,
) -> None:
    """Subject and node together equal the value table, and either one missing would be noticed.

    Args:
        binding: inputs of Bind Subject; `settings` is the same for the value table.
        acts: False for a node that must merely not be in the way.
    """
    subject = make_subject(make_encoder(scene))
    expected = sample_naive(scene, subject, alter, prepare, settings, **sampling)
    plain = sample_naive(scene, None, alter, prepare, **sampling)
    for place in places:
        found = sample_bound(scene, subject, alter, place, prepare, binding, **sampling)
        assert_equal(found, expected, plain)
    if acts:
        without_node = sample_naive(scene, subject, settings=settings, **sampling)
        assert (without_node - expected).norm() / expected.norm() > 5e-4
