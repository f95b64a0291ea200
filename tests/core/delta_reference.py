"""The method's last formula as a table of values, one per pixel and text token, in float64."""

from __future__ import annotations

import math

import torch
from tensors import random
from torch import Tensor

from nested_core.attention import BoundToken, ValueNorm


def random_layer(batch=2, heads=3, pixels=7, text_tokens=5, head_dim=4, seed=0):
    query = random(batch, heads, pixels, head_dim, seed=seed)
    key, value = (random(batch, heads, text_tokens, head_dim, seed=seed + i) for i in (1, 2))
    return query, key, value


def by_value_table(query, key, value, tokens, separation=None):
    """One value per pixel and text token, in float64: the paper's sentence, word for word.

    Separated, a competing token offers what the owners of each pixel would offer in its place.
    """
    query, key, value = (each.double() for each in (query, key, value))
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    table = value[:, :, None].repeat(1, 1, query.shape[2], 1, 1)
    for token in tokens:
        for row, position in enumerate(token.position.tolist()):
            text = value[row, :, position][:, None]
            m, star = region_and_star(token, value, row)
            offered = text + token.strength * m * (star - text)
            if token.share is not None:
                owners = text.expand_as(star).clone()
                for other in (each for each in tokens if each.share is not None):
                    _, star_t = region_and_star(other, value, row)
                    share = other.share[row].double()
                    owners += share * other.strength * other.presence * (star_t - text)
                taken = 0.0 if separation is None else separation[row].double()
                offered = (1 - taken) * offered + taken * owners
            table[row, :, :, position] = offered
            logits[row, :, :, position] += m[..., 0] * math.log(token.token_weight)
    return torch.einsum("bhpt,bhptd->bhpd", logits.softmax(-1), table)


def region_and_star(token, value, row):
    """m(q) and the normed v*(q) of one row, in float64."""
    text = value[row, :, token.position[row]][:, None]
    star = token.values[row].double()
    if token.value_norm.mode != "none":
        dims = (-1,) if token.value_norm.mode == "per_head" else (0, 2)
        length = star.norm(dim=dims, keepdim=True)
        star = token.value_norm.scale * text.norm(dim=dims, keepdim=True) * star / length
    region = torch.ones(1, 1, 1, 1) if token.region is None else token.region
    return token.presence * region[row % len(region)].double(), star


def plain(query, key, value):
    return by_value_table(query, key, value, [])


def bound_token(values: Tensor, position: list[int], mode="per_head", **settings) -> BoundToken:
    return BoundToken(torch.tensor(position), values, ValueNorm(mode, 1.5), **settings)
