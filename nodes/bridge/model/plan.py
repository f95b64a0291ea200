"""The plan of one call of the UNet: rows and positions to subjects, worked out on the CPU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ....nested_core.binding import Binding
from ....nested_core.competition import ownership
from ....nested_core.families.unet_sites import AttentionSite
from ....nested_core.subject import SubjectSequence
from ..text.conditioning import read_slots
from .arrival import Arrival
from .kv_cache import SubjectIdentity, SubjectKeysValues, identity_of
from .sampling import SubjectMaps
from .site_call import ActiveSubject, RowGroup, Rows, TokenOccurrence


class SubjectKey(NamedTuple):
    """A subject as one row needs it: a binding may have another one for each picture."""

    binding_id: int
    identity: SubjectIdentity


class TokenKey(NamedTuple):
    """A bound token as one row has it; see `Slot`."""

    subject: SubjectKey
    is_doubled: bool
    is_negated: bool


@dataclass(frozen=True, eq=False)
class Acting:
    """A binding that acts at this step.

    Attributes:
        presence: how much, in (0, 1].
        mask: the user's region on the device, `[rows of the call, 1, height, width]`, or None.
    """

    binding: Binding
    sites: frozenset[AttentionSite]
    presence: float
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Planner:
    """Everything that decides the plan of a call.

    Attributes:
        acting: by binding id.
        loaded: keys and values on the device, by whose they are.
        arrival: what is known of the rows.
        maps: where subjects were seen so far, or None where nobody separates them.
        separation: how far they are kept apart, in [0, 1].
    """

    acting: Mapping[int, Acting]
    loaded: Mapping[SubjectIdentity, SubjectKeysValues]
    arrival: Arrival
    device: torch.device
    maps: SubjectMaps | None = None
    separation: float = 0.0

    def plan(self) -> tuple[tuple[ActiveSubject, ...], tuple[RowGroup, ...]]:
        """The subjects and row groups of the call."""
        grouped = group_rows(
            [self._tokens_of_row(row, slots) for row, slots in enumerate(self.arrival.slots)]
        )
        rows_of: dict[SubjectKey, list[int]] = {}
        for tokens, group in grouped.items():
            for key in dict.fromkeys(token.subject for token in tokens):
                rows_of.setdefault(key, []).extend(group)
        rows_of = {key: sorted(rows) for key, rows in rows_of.items()}
        subjects = {key: self._subject(key, rows) for key, rows in rows_of.items()}
        groups = tuple(
            self._group(tokens, group, subjects, rows_of) for tokens, group in grouped.items()
        )
        return tuple(subjects.values()), groups

    def _tokens_of_row(self, row: int, slots: Sequence[int]) -> list[tuple[int, TokenKey]]:
        tokens: list[tuple[int, TokenKey]] = []
        for slot in read_slots(slots):
            key = self._key(row, slot.binding_id)
            if key is not None:
                tokens.append((slot.position, TokenKey(key, slot.is_doubled, slot.is_negated)))
        return tokens

    def _group(
        self,
        tokens: tuple[TokenKey, ...],
        positions: Mapping[int, Sequence[int]],
        subjects: Mapping[SubjectKey, ActiveSubject],
        rows_of: Mapping[SubjectKey, Sequence[int]],
    ) -> RowGroup:
        owned, separation = self._competition([each.subject for each in tokens], list(positions))
        return RowGroup(
            rows=_rows(list(positions), self.device),
            row_numbers=tuple(positions),
            occurrences=tuple(
                TokenOccurrence(
                    subject=subjects[token.subject],
                    positions=torch.tensor(
                        [each[nth] for each in positions.values()], device=self.device
                    ),
                    rows_of_subject=_rows(
                        [rows_of[token.subject].index(row) for row in positions], self.device
                    ),
                    share=owned.get(token.subject),
                    is_doubled=token.is_doubled,
                    is_negated=token.is_negated,
                )
                for nth, token in enumerate(tokens)
            ),
            separation=separation,
        )

    def _key(self, row: int, binding_id: int) -> SubjectKey | None:
        acting = self.acting.get(binding_id)
        if acting is None:
            return None
        identity = self._identity(acting.binding, row)
        if identity is None or identity not in self.loaded:
            return None
        return SubjectKey(binding_id, identity)

    def _identity(self, binding: Binding, row: int) -> SubjectIdentity | None:
        """Of the row's subject; None where there are several and nobody knows the row's picture."""
        places, subject = self.arrival.places, binding.subject
        if places is not None:
            return identity_of(subject.of_picture(places[row].picture))
        if isinstance(subject, SubjectSequence) and len(subject.subjects) > 1:
            return None
        return identity_of(subject.of_picture(0))

    def _subject(self, key: SubjectKey, rows: list[int]) -> ActiveSubject:
        acting = self.acting[key.binding_id]
        return ActiveSubject(
            binding=acting.binding,
            keys_values=self.loaded[key.identity],
            sites=acting.sites,
            rows=_rows(rows, self.device),
            region=acting.mask,
            presence=acting.presence,
        )

    def _competition(
        self, keys: Sequence[SubjectKey], rows: Sequence[int]
    ) -> tuple[dict[SubjectKey, Tensor], Tensor | None]:
        """How much of each pixel is each subject's, and how far that counts; nothing if unknown.

        All are `[rows, 1, height, width]`.
        """
        subjects = list(dict.fromkeys(keys))
        if self.maps is None or self.arrival.places is None or len(subjects) < 2:
            return {}, None
        owned = self._owners([key.binding_id for key in subjects], rows)
        if owned is None:
            return {}, None
        shares, open_to_all = owned
        shared = {
            key: share[:, None] / keys.count(key)
            for key, share in zip(subjects, shares.unbind(dim=1), strict=True)
        }
        return shared, self.separation * open_to_all

    def _owners(self, ids: Sequence[int], rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Whose each pixel is, `[rows, subjects, height, width]`, and where that is open."""
        assert self.maps is not None
        assert self.arrival.places is not None
        where = [self.arrival.places[row] for row in rows]
        size = (where[0].height, where[0].width)
        masks = [_on_grid(self.acting[each].mask, rows, size) for each in ids]
        known = [self.maps.evidence(place, ids, self.device) for place in where]
        # Masks need not wait for the first step to show something.
        is_open = [each is not None or all(mask is not None for mask in masks) for each in known]
        if not any(is_open):
            return None
        nothing = torch.zeros(len(ids), *size, device=self.device)
        evidence = torch.stack([nothing if each is None else each for each in known])
        shares, open_to_all = ownership(evidence, masks)
        # A row that nothing is known of shares its call with others, and nothing else.
        rows_open = torch.tensor(is_open, device=self.device).view(
            -1, *[1] * (open_to_all.ndim - 1)
        )
        return shares, open_to_all * rows_open


def _on_grid(mask: Tensor | None, rows: Sequence[int], size: tuple[int, int]) -> Tensor | None:
    """A mask `[rows of the call, 1, height, width]` as `[rows, height, width]` on a grid."""
    if mask is None:
        return None
    return functional.interpolate(mask[list(rows)], size=size, mode="area")[:, 0]


_Key = TypeVar("_Key", bound=Hashable)


def group_rows(
    tokens: Sequence[Sequence[tuple[int, _Key]]],
) -> dict[tuple[_Key, ...], dict[int, list[int]]]:
    """Rows grouped by the sequence of tokens that they contain, each with their positions.

    Args:
        tokens: of each row, position and token.
    """
    groups: dict[tuple[_Key, ...], dict[int, list[int]]] = {}
    for row, found in enumerate(tokens):
        if found:
            positions, keys = zip(*found, strict=True)
            groups.setdefault(keys, {})[row] = list(positions)
    return groups


def _rows(rows: list[int], device: torch.device) -> Rows:
    """A run of rows as a slice, which copies nothing; else their indices."""
    if rows == list(range(rows[0], rows[-1] + 1)):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
