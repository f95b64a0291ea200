"""Every kernel gives the same delta and the same maps, over the text alone and over more keys."""

from __future__ import annotations

import math

import pytest
import torch
from delta_reference import bound_token, by_value_table, plain, random_layer
from tensors import random

from nested_core.joint import JointSoftmax
from nested_core.kernels import KERNELS

TEXT, IMAGE = 6, 5
SETTINGS = {
    "as trained": {},
    "weighted": {"token_weight": 3.0, "strength": 0.7},
    "masked": {"token_weight": 0.4, "region": torch.rand(2, 1, 7, 1)},
    "present in part": {"presence": 0.3, "token_weight": 2.0},
}


def _softmax_over(query, key, value) -> JointSoftmax:
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    return JointSoftmax(logits.logsumexp(-1, keepdim=True), logits.softmax(-1) @ value)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
@pytest.mark.parametrize("is_joint", [False, True], ids=["text alone", "text and image"])
@pytest.mark.parametrize("separation", [None, torch.rand(2, 1, 7, 1)], ids=["together", "apart"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_delta_and_the_maps_equal_the_table(kernel, is_joint, separation, settings):
    query, key, value = random_layer(text_tokens=TEXT + (IMAGE if is_joint else 0))
    shares = [None, None] if separation is None else torch.rand(2, 2, 1, 7, 1).unbind()
    values = [random(*query.shape, seed=20 + nth) for nth in range(2)]
    tokens = [
        bound_token(values[0], [1, 4], share=shares[0], **settings),
        bound_token(values[1], [3, 0], "all_heads", share=shares[1]),
    ]
    seen = torch.empty(2, 2, 7)
    joint = _softmax_over(query, key, value) if is_joint else None
    text = (slice(None), slice(None), slice(TEXT))
    delta = kernel(query, key[text], value[text], tokens, seen, separation, joint)
    expected = by_value_table(query, key, value, tokens, separation)
    torch.testing.assert_close(
        plain(query, key, value) + delta, expected, rtol=1e-5, atol=1e-5, check_dtype=False
    )
    attention = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1).mean(1)
    for nth, token in enumerate(tokens):
        for row, position in enumerate(token.position):
            torch.testing.assert_close(seen[row, nth], attention[row, :, position])
