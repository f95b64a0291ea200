from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import random
from torch.nn import functional

from nested_core.attention import nested_values
from nested_core.errors import SubjectError
from nested_core.subject import (
    SubjectSequence,
    combine_references,
    parse_weights,
    relative_weights,
    subject_from_features,
)

# ---- weights: how they are written ----


@pytest.mark.parametrize(
    ("text", "num_references", "expected"),
    [
        ("", 3, ()),
        ("  \n", 3, ()),
        ("1, 1, 1", 3, ()),
        ("0.3,0.3", 2, ()),
        ("7", 1, ()),
        ("2, 1", 2, (1.0, 0.5)),
        (" 1 ,4,\n2 ", 3, (0.25, 1.0, 0.5)),
        ("1e-6, 1", 2, (1e-6, 1.0)),
        ("1e300, 5e299", 2, (1.0, 0.5)),
    ],
)
def test_weights_are_read(text: str, num_references: int, expected: tuple[float, ...]):
    assert parse_weights(text, num_references) == expected


@pytest.mark.parametrize(
    "term", ["x", "", "0", "-1", "nan", "inf", "1e400", "1;2", "__import__('os')"]
)
def test_a_weight_that_is_no_number_above_zero_is_named(term: str):
    with pytest.raises(SubjectError) as error:
        parse_weights(f"1, {term}", 2)
    assert f"Encode Subject: weight 2 is '{term}', expected a number above 0. Write" in str(
        error.value
    )


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("1, 2, 3", 3), ("1,5, 2,5", 4)])
def test_a_weight_is_missing_or_too_many(text: str, count: int):
    with pytest.raises(
        SubjectError,
        match=rf"^Encode Subject: weights '{text}' has {count} number\(s\), expected one for each of "
        r"the 2 reference image\(s\)\. Separate them by commas",
    ):
        parse_weights(text, 2)


def test_weights_that_leave_a_photograph_out_are_refused():
    with pytest.raises(
        SubjectError,
        match=r"reach from 9e-07 to 1, expected the least .* 1e-06 of .* out of the batch",
    ):
        relative_weights([1.0, 9e-7])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.sampled_from([0.125, 2.0, 64.0]))
def test_only_the_ratios_of_weights_count(weights: list[float], factor: float):
    relative = relative_weights(weights)
    assert relative == relative_weights([weight * factor for weight in weights])
    assert relative == relative_weights(relative)
    assert (relative == ()) == (len(set(weights)) == 1)
    assert max(relative, default=1.0) == 1.0


# ---- weights: what they do ----


def test_the_average_is_the_weighted_mean():
    tokens = random(3, 4, 5)
    found, references, weights = combine_references(tokens, "average", (1.0, 0.5, 0.25))
    expected = (4 * tokens[0] + 2 * tokens[1] + tokens[2]) / 7
    torch.testing.assert_close(found, expected)
    assert (references, weights) == ((4,), ())


def test_the_average_without_weights_is_the_mean_bit_for_bit():
    tokens = random(3, 4, 5)
    assert torch.equal(combine_references(tokens, "average")[0], tokens.mean(dim=0))


def test_concatenated_references_keep_their_tokens_and_their_weights():
    tokens = random(2, 4, 5)
    found, references, weights = combine_references(tokens, "concatenate", (0.5, 1.0))
    assert torch.equal(found, torch.cat([tokens[0], tokens[1]]))
    assert (references, weights) == ((4, 4), (0.5, 1.0))


def test_a_subject_of_features_has_the_weights_of_its_references(make_encoder: Any):
    features = random(2, 7, 16)
    encoder = make_encoder()
    plain = subject_from_features(encoder, features, "")
    weighted = subject_from_features(encoder, features, "", "concatenate", (1.0, 0.5))
    averaged = subject_from_features(encoder, features, "", "average", (1.0, 0.5))
    assert torch.equal(weighted.tokens, plain.tokens)
    assert (plain.weights, weighted.weights, averaged.weights) == ((), (1.0, 0.5), ())
    expected = (2 * plain.tokens[:4] + plain.tokens[4:]) / 3
    torch.testing.assert_close(averaged.tokens, expected)


def test_log_weights_are_those_of_each_tokens_reference(make_subject: Any):
    subject = replace(make_subject(references=(1, 3)), weights=(0.25, 1.0))
    torch.testing.assert_close(subject.log_weights, torch.tensor([math.log(0.25), 0.0, 0.0, 0.0]))
    assert make_subject(references=(1, 3)).log_weights is None


def test_a_weight_of_two_is_the_same_photograph_twice():
    query, key, value = random(2, 3, 9, 8), random(2, 3, 4, 8, seed=1), random(2, 3, 4, 8, seed=2)
    twice = [0, 1, 0, 1, 2, 3]  # the first reference has two tokens
    log_weights = torch.tensor([0.0, 0.0, math.log(0.5), math.log(0.5)])
    found = nested_values(query, key, value, log_weights=log_weights)
    expected = nested_values(query, key[:, :, twice], value[:, :, twice])
    torch.testing.assert_close(found, expected)
    unweighted = nested_values(query, key, value)
    assert (found - unweighted).norm() > 0.05 * unweighted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_take_the_precision_of_the_query(dtype: torch.dtype):
    query, key, value = (random(1, 2, 4, 8, seed=seed).to(dtype) for seed in range(3))
    log_weights = torch.tensor([0.0, -1.0, -2.0, 0.0])
    found = nested_values(query, key, value, log_weights=log_weights)
    assert found.dtype == dtype
    q, k, v = query.double(), key.double(), value.double()
    logits = q @ k.mT / math.sqrt(8) + log_weights.double()
    # Tolerance: the rounding of the values themselves, 2^-8 in bfloat16.
    assert (found.double() - logits.softmax(-1) @ v).norm() < 0.01 * v.norm()


def test_without_weights_the_backend_gets_no_bias():
    calls: list[int] = []

    def backend(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(len(arguments))
        return functional.scaled_dot_product_attention(*arguments)

    query, key, value = (random(1, 2, 4, 8, seed=seed) for seed in range(3))
    plain = nested_values(query, key, value, backend)
    nested_values(query, key, value, backend, torch.zeros(4))
    assert calls == [3, 4]
    assert torch.equal(plain, functional.scaled_dot_product_attention(query, key, value))


# ---- what a subject is known by ----


def test_the_digest_without_weights_is_that_of_the_tokens_alone(make_subject: Any):
    subject = make_subject(references=(4, 4))
    assert subject.digest == hashlib.sha256(subject.tokens.numpy().tobytes()).digest()


def test_weights_and_what_they_apply_to_change_the_digest(make_subject: Any):
    subject = make_subject(references=(2, 6))
    variants = [
        subject,
        replace(subject, weights=(1.0, 0.5)),
        replace(subject, weights=(0.5, 1.0)),
        replace(subject, weights=(0.5, 1.0), references=(6, 2)),
    ]
    assert len({each.digest for each in variants}) == 4
    again = replace(subject, weights=(1.0, 0.5), noun="woman", thumbnail="x")
    assert again.digest == variants[1].digest
    assert json.loads(json.dumps(subject.weights)) == []


# ---- a subject for each picture ----


@pytest.fixture
def three(make_subject: Any, make_encoder: Any) -> list[Any]:
    encoder = make_encoder()
    return [make_subject(encoder, seed=seed) for seed in range(3)]


def test_a_subject_is_the_one_of_every_picture(make_subject: Any):
    subject = make_subject()
    assert [subject.of_picture(index) for index in (0, 1, 7)] == [subject] * 3
    assert subject.subjects == (subject,)


def test_pictures_get_the_subjects_in_their_order_and_begin_again(three: list[Any]):
    sequence = SubjectSequence(tuple(three))
    found = [three.index(sequence.of_picture(index)) for index in range(8)]
    assert found == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_sequence_has_the_noun_and_the_encoder_of_its_first(three: list[Any]):
    sequence = SubjectSequence((replace(three[0], noun="queen"), *three[1:]))
    assert sequence.noun == "queen"
    assert sequence.encoder is three[0].encoder


def test_the_digest_of_a_sequence_is_of_its_subjects_in_their_order(
    three: list[Any], make_subject: Any
):
    one, other, _ = three
    digests = [
        SubjectSequence(each).digest
        for each in ((one,), (one, other), (other, one), (one, other, one))
    ]
    assert len({*digests, one.digest}) == 5
    equal = SubjectSequence((make_subject(one.encoder, seed=0), make_subject(one.encoder, seed=1)))
    assert equal.digest == digests[1]
    assert digests[1] == hashlib.sha256(one.digest + other.digest).digest()


def test_equal_encoders_of_two_files_make_one_sequence(make_subject: Any, make_encoder: Any):
    one, other = make_encoder(), make_encoder()
    assert one is not other
    sequence = SubjectSequence((make_subject(one), make_subject(other)))
    assert sequence.encoder is one


def test_a_sequence_of_two_encoders_is_refused(make_subject: Any, make_encoder: Any):
    other = make_encoder(seed=1)
    other.name = "pets"
    subjects = (make_subject(make_encoder()), make_subject(make_encoder()), make_subject(other))
    with pytest.raises(
        SubjectError,
        match=r"^Subject per Picture: subject 3 was made with the encoder 'pets', but the first one "
        r"with 'tiny', .* same encoder\.$",
    ):
        SubjectSequence(subjects)


def test_a_sequence_of_nothing_is_refused():
    with pytest.raises(SubjectError, match=r"found no subject, expected at least one\. Connect"):
        SubjectSequence(())
