"""Other ways to show subjects to a transformer's layers, to compare with. The pack offers none of them.

q, K and V are those of all tokens of a layer, text and pixels; Kn and Vn the subject's.

    decoupled    out(q) = softmax(q K^T) V + scale softmax(q Kn^T) Vn                        for pixels
    joined       out(q) = softmax(q [K, Kn]^T) [V, Vn], scale on the weights of Kn           for pixels
    text_too     nested attention for the text's queries as for the pixels'
    learned_key  nested attention, but the subject's first key stands in for the key of s    for pixels
    moved_key    nested attention, but the subject's first key is added to the key of s      for pixels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nested_core.attention import split_heads
from nested_core.sites import Site
from nested_core.training.nested_attention import NestedSubjects, attend_joint

from .decoupled import image_attention

_attention = functional.scaled_dot_product_attention


@dataclass(frozen=True, eq=False)
class Way:
    """A subject for every row of a batch.

    Attributes:
        subjects: what the trainer hands to every base model.
        scale: of the image's attention, where it has one of its own.
        sites: the letters of the blocks where they act; all without it.
    """

    subjects: NestedSubjects
    scale: float = 1.0
    sites: str = ""

    def attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        """The layer's output, `[batch, heads, tokens, head_dim]`.

        Args:
            num_text: how many of the keys are the text's, which come first.
            first: of the queries, the picture's first.
        """
        if self.sites and site.text[0] not in self.sites:
            return _attention(query, key, value)
        return self._attend(site, query, key, value, num_text, first)

    def _attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        pixels = slice(first, None)
        return attend_joint(query, key, value, num_text, pixels, None, site, self.subjects)

    def _keys_values(self, site: Site, query: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.subjects.keys_values[site.path]
        heads = query.shape[1]
        return split_heads(key.to(query), heads), split_heads(value.to(query), heads)


class Decoupled(Way):
    """See above."""

    def _attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        out = _attention(query, key, value)
        image = image_attention(query[:, :, first:], *self.subjects.keys_values[site.path])
        return torch.cat([out[:, :, :first], out[:, :, first:] + self.scale * image], dim=2)


class Joined(Way):
    """See above."""

    def _attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        image_key, image_value = self._keys_values(site, query)
        if self.scale == 0.0:
            return _attention(query, key, value)
        num_keys = key.shape[2]
        weights = key.new_zeros(1, 1, 1, num_keys + image_key.shape[2])
        weights[..., num_keys:] = math.log(self.scale)
        pixels = _attention(
            query[:, :, first:],
            torch.cat([key, image_key], dim=2),
            torch.cat([value, image_value], dim=2),
            weights,
        )
        return torch.cat([_attention(query[:, :, :first], key, value), pixels], dim=2)


class TextToo(Way):
    """See above."""

    def _attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        return super()._attend(site, query, key, value, num_text, 0)


class LearnedKey(Way):
    """See above."""

    adds = False

    def _attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int
    ) -> Tensor:
        nested_key, nested_value = self.subjects.keys_values[site.path]
        own, _ = self._keys_values(site, query)
        numbers = torch.arange(key.shape[2], device=key.device)
        is_bound = numbers[None] == self.subjects.positions.view(-1, 1)
        own = own[:, :, :1]
        moved = torch.where(is_bound[:, None, :, None], key + own if self.adds else own, key)
        inner = NestedSubjects(
            {site.path: (nested_key[:, 1:], nested_value[:, 1:])},
            self.subjects.positions,
            self.subjects.value_norm,
        )
        pixels = attend_joint(
            query[:, :, first:], moved, value, num_text, slice(0, None), None, site, inner
        )
        return torch.cat([_attention(query[:, :, :first], key, value), pixels], dim=2)


class MovedKey(LearnedKey):
    """See above."""

    adds = True


WAYS: Mapping[str, type[Way]] = {
    "nested": Way,
    "decoupled": Decoupled,
    "joined": Joined,
    "text_too": TextToo,
    "learned_key": LearnedKey,
    "moved_key": MovedKey,
}
