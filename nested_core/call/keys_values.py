"""Nested keys and values of subjects, projected once and used at every step."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from ..sites import Site
from ..subject import Subject


class SubjectIdentity(NamedTuple):
    """What tells subjects apart while their encoders are loaded.

    Tokens alone do not: two encoders with the same resampler make the same ones of a photograph.
    """

    encoder_id: int
    digest: bytes


class SiteKeysValues(nn.Module):
    """Nested keys and values of one subject at one site, `[1, tokens, inner]`.

    Attributes:
        log_weights: `[tokens]`, added to the nested logits; None where all references are equal.
            Beside the keys at each site, small as it is, so that it goes where they go.
    """

    def __init__(self, key: Tensor, value: Tensor, log_weights: Tensor | None = None) -> None:
        super().__init__()
        self.key = nn.Parameter(key, requires_grad=False)
        self.value = nn.Parameter(value, requires_grad=False)
        self.log_weights = (
            None if log_weights is None else nn.Parameter(log_weights, requires_grad=False)
        )


class SubjectKeysValues(nn.Module):
    """Nested keys and values of one subject at many sites.

    Attributes:
        identity: of the subject they belong to, also in the copies that other devices get.
    """

    def __init__(self, identity: SubjectIdentity, sites: dict[Site, SiteKeysValues]) -> None:
        super().__init__()
        self.identity = identity
        self.by_site = sites
        self.modules_by_site = nn.ModuleDict(
            {site.path.replace(".", "_"): module for site, module in sites.items()}
        )

    def __deepcopy__(self, memo: dict[int, object]) -> SubjectKeysValues:
        sites = {site: copy.deepcopy(module, memo) for site, module in self.by_site.items()}
        return SubjectKeysValues(self.identity, sites)


def identity_of(subject: Subject) -> SubjectIdentity:
    """Which `SubjectKeysValues` are the subject's, by their `identity`."""
    return SubjectIdentity(id(subject.encoder), subject.digest)
