"""Bindings: their identity, their defaults, their union."""

from __future__ import annotations

import pytest
import torch

from nested_core.binding import bind, merge_bindings
from nested_core.errors import BindingError


def test_the_id_depends_on_token_and_subject_alone(make_subject):
    anna, rex = make_subject(seed=1), make_subject(seed=2)
    first = bind(anna, "<anna>", "woman", strength=0.5)
    assert bind(make_subject(seed=1), "<anna>", "girl", token_weight=2.0).id == first.id
    assert bind(rex, "<anna>").id != first.id
    assert bind(anna, "<Anna>").id != first.id
    assert 0 < first.id < 2**31


def test_an_empty_noun_is_the_encoders_own(make_subject):
    assert bind(make_subject(), noun="  ").noun == "person"
    assert bind(make_subject(), noun=" black dog ").noun == "black dog"


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, True),
        ({"strength": 0.0}, False),
        ({"strength": 0.0, "token_weight": 2.0}, True),
        ({"strength": 0.1}, True),
    ],
)
def test_a_binding_that_cannot_act_knows_it(make_subject, settings, expected):
    assert bind(make_subject(), **settings).has_effect is expected


@pytest.mark.parametrize(
    "shape, pictures", [((4, 6), (1, 4, 6)), ((3, 4, 6), (3, 4, 6)), ((2, 1, 4, 6), (2, 4, 6))]
)
def test_masks_become_one_per_picture(make_subject, shape, pictures):
    mask = bind(make_subject(), mask=torch.full(shape, 1.5)).mask
    assert mask is not None
    assert mask.shape == pictures
    assert float(mask.max()) == 1.0


def test_a_later_binding_replaces_an_earlier_one_of_its_token(make_subject):
    a1, b1, a2 = (
        bind(make_subject(seed=i), token) for i, token in enumerate(("<a>", "<b>", "<a>"))
    )
    assert merge_bindings([a1, b1], [a2]) == (b1, a2)


@pytest.mark.parametrize("noun", ["(woman)", "woman\\", "embedding:anna"])
def test_a_noun_with_prompt_syntax_is_refused(make_subject, noun):
    with pytest.raises(BindingError, match="contains prompt syntax"):
        bind(make_subject(), noun=noun)
