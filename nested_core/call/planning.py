"""The plan of one call of the model: rows and positions to subjects, worked out on the CPU.

`plan_call` makes it in one go from bindings, slot maps, masks, noise level and what was seen so far.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ..binding import Binding
from ..competition import ownership
from ..subject import SubjectSequence
from .arrival import Arrival
from .evidence import SubjectMaps
from .keys_values import SubjectIdentity, SubjectKeysValues, identity_of
from .plan import ActiveSubject, CallPlan, RowGroup, Rows, TokenOccurrence
from .rules import Moment, Rules
from .slots import read_slots


def plan_call(
    rules: Rules,
    latent: Tensor,
    arrival: Arrival,
    moment: Moment,
    loaded: Mapping[SubjectIdentity, SubjectKeysValues],
    maps: SubjectMaps | None = None,
) -> CallPlan:
    """Who acts in a call, from everything that is known before the model runs.

    Args:
        latent: `[rows, channels, height, width]`, of which only shape and device count.
        arrival: whose the rows are, where they lie, and their part of the masks.
        loaded: keys and values on the device, by whose they are.
        maps: where subjects were seen so far; None where nobody separates them.
    """
    return _Planner(rules, latent, arrival, moment, loaded, maps).plan()


class _SubjectKey(NamedTuple):
    """A subject as one row needs it: a binding may have another one for each picture."""

    binding_id: int
    identity: SubjectIdentity


class _TokenKey(NamedTuple):
    """A bound token as one row has it; see `Slot`."""

    subject: _SubjectKey
    is_doubled: bool
    is_negated: bool


class _Planner:
    """The steps of `plan_call`."""

    def __init__(
        self,
        rules: Rules,
        latent: Tensor,
        arrival: Arrival,
        moment: Moment,
        loaded: Mapping[SubjectIdentity, SubjectKeysValues],
        maps: SubjectMaps | None,
    ) -> None:
        self.rules, self.latent, self.arrival = rules, latent, arrival
        self.loaded, self.maps, self.device = loaded, maps, latent.device
        presences = {each.id: moment.presence(each) for each in rules.acting}
        self.presences = {number: each for number, each in presences.items() if each > 0.0}
        self.bindings = {each.id: each for each in rules.acting}
        of_rows = arrival.masks if arrival.masks is not None else ()
        self.regions = {
            each.id: mask.to(self.device)
            for each, mask in zip(rules.masked, of_rows, strict=False)
            if each.id in self.presences
        }

    def plan(self) -> CallPlan:
        slots = self.arrival.slots
        grouped = group_rows([self._tokens_of_row(row, each) for row, each in enumerate(slots)])
        rows_of: dict[_SubjectKey, list[int]] = {}
        for tokens, group in grouped.items():
            for key in dict.fromkeys(token.subject for token in tokens):
                rows_of.setdefault(key, []).extend(group)
        rows_of = {key: sorted(rows) for key, rows in rows_of.items()}
        subjects = {key: self._subject(key, rows) for key, rows in rows_of.items()}
        return CallPlan(
            num_rows=len(self.latent),
            num_text_tokens=len(slots[0]),
            size=(self.latent.shape[-2], self.latent.shape[-1]),
            subjects=tuple(subjects.values()),
            groups=tuple(
                self._group(tokens, group, subjects, rows_of) for tokens, group in grouped.items()
            ),
        )

    def _tokens_of_row(self, row: int, slots: Sequence[int]) -> list[tuple[int, _TokenKey]]:
        tokens: list[tuple[int, _TokenKey]] = []
        for slot in read_slots(slots):
            key = self._key(row, slot.binding_id)
            if key is not None:
                tokens.append((slot.position, _TokenKey(key, slot.is_doubled, slot.is_negated)))
        return tokens

    def _group(
        self,
        tokens: tuple[_TokenKey, ...],
        positions: Mapping[int, Sequence[int]],
        subjects: Mapping[_SubjectKey, ActiveSubject],
        rows_of: Mapping[_SubjectKey, Sequence[int]],
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

    def _key(self, row: int, binding_id: int) -> _SubjectKey | None:
        if binding_id not in self.presences:
            return None
        identity = self._identity(self.bindings[binding_id], row)
        if identity is None or identity not in self.loaded:
            return None
        return _SubjectKey(binding_id, identity)

    def _identity(self, binding: Binding, row: int) -> SubjectIdentity | None:
        """Of the row's subject; None where there are several and nobody knows the row's picture."""
        places, subject = self.arrival.places, binding.subject
        if places is not None:
            return identity_of(subject.of_picture(places[row].picture))
        if isinstance(subject, SubjectSequence) and len(subject.subjects) > 1:
            return None
        return identity_of(subject.of_picture(0))

    def _subject(self, key: _SubjectKey, rows: list[int]) -> ActiveSubject:
        return ActiveSubject(
            binding=self.bindings[key.binding_id],
            keys_values=self.loaded[key.identity],
            sites=self.rules.sites[key.binding_id],
            rows=_rows(rows, self.device),
            region=self.regions.get(key.binding_id),
            presence=self.presences[key.binding_id],
        )

    def _competition(
        self, keys: Sequence[_SubjectKey], rows: Sequence[int]
    ) -> tuple[dict[_SubjectKey, Tensor], Tensor | None]:
        """How much of each pixel is each subject's, and how far that counts; nothing if unknown.

        All are `[rows, frames, height, width]`.
        """
        subjects = list(dict.fromkeys(keys))
        if self.maps is None or self.arrival.places is None or len(subjects) < 2:
            return {}, None
        owned = self._owners([key.binding_id for key in subjects], rows)
        if owned is None:
            return {}, None
        shares, open_to_all = owned
        shared = {
            key: share / keys.count(key)
            for key, share in zip(subjects, shares.unbind(dim=2), strict=True)
        }
        return shared, self.rules.separation * open_to_all.squeeze(2)

    def _owners(self, ids: Sequence[int], rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Whose each pixel is, `[rows, frames, subjects, height, width]`, and where that is open."""
        assert self.maps is not None
        assert self.arrival.places is not None
        where = [self.arrival.places[row] for row in rows]
        size = (where[0].height, where[0].width)
        frames = self.latent.shape[2] if self.latent.ndim == 5 else 1
        masks = [_on_grid(self.regions.get(each), rows, frames, size) for each in ids]
        known = [self.maps.evidence(place, ids, self.device) for place in where]
        # Masks need not wait for the first step to show something.
        is_open = [each is not None or all(mask is not None for mask in masks) for each in known]
        if not any(is_open):
            return None
        nothing = torch.zeros(frames, len(ids), *size, device=self.device)
        evidence = torch.stack([nothing if each is None else each for each in known])
        shares, open_to_all = ownership(evidence, masks)
        # A row that nothing is known of shares its call with others, and nothing else.
        rows_open = torch.tensor(is_open, device=self.device).view(
            -1, *[1] * (open_to_all.ndim - 1)
        )
        return shares, open_to_all * rows_open


def _on_grid(
    mask: Tensor | None, rows: Sequence[int], frames: int, size: tuple[int, int]
) -> Tensor | None:
    """A mask `[rows of the call, 1 or frames, height, width]` as the same of all frames on a grid."""
    if mask is None:
        return None
    resized = functional.interpolate(mask[list(rows)], size=size, mode="area")
    return resized.expand(-1, frames, -1, -1) if resized.shape[1] == 1 else resized


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
