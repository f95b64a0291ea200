"""What one sampling has shown so far: where each subject is, step after step.

It travels in the sampling's own options and ends with them, so two samplings never mix and nothing
stays on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ...nested_core.attention import BoundToken, blended_values
from ...nested_core.competition import SMALLEST, comparability, contrast
from ...nested_core.maps import ValuePicture, value_picture
from ...nested_core.sites import AttentionSite
from .conditioning import Place
from .recording import Recorder, any_values
from .sighting import Sighting

SAMPLING_KEY = "nested_attention_sampling"

# How much of what was known is kept when a step has shown more: who stands where is decided early.
_MEMORY = 0.9

# A prompt of its own for every picture: what one has shown never moves another.
_Key: TypeAlias = tuple[int, int, int]  # conditioning, picture, binding id


@dataclass(eq=False)
class SubjectMaps:
    """Evidence of where each subject is, on the grid of the rows' latents (`competition.py`)."""

    _known: dict[_Key, Tensor] = field(default_factory=dict)

    def learn(self, sightings: Iterable[Sighting], places: Sequence[Place]) -> None:
        """Takes in what one call of the UNet has shown."""
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Tensor]] = {}
        for each in sightings:
            binding_ids = tuple(binding.id for binding in each.bindings)
            groups.setdefault((each.rows, binding_ids), []).append(each.seen)
        for (rows, binding_ids), seen in groups.items():
            size = (places[rows[0]].height, places[rows[0]].width)
            for binding_id, shown in _mean_over_sites(seen, binding_ids, size).items():
                for row, evidence in zip(rows, shown, strict=True):
                    self._learn(_key(places[row], binding_id), evidence)

    def _learn(self, key: _Key, evidence: Tensor) -> None:
        known = self._known.get(key)
        if known is not None and known.shape == evidence.shape:
            evidence = known.to(evidence.device).lerp(evidence, 1.0 - _MEMORY)
        self._known[key] = evidence

    def evidence(
        self, place: Place, binding_ids: Sequence[int], device: torch.device
    ) -> Tensor | None:
        """Of these subjects in a row, `[subjects, height, width]`; None before all were seen."""
        known = [self._known.get(_key(place, each)) for each in binding_ids]
        found = [each.to(device) for each in known if each is not None]
        size = (place.height, place.width)
        if len(found) < len(binding_ids) or any(each.shape != size for each in found):
            return None
        return torch.stack(found)


def _key(place: Place, binding_id: int) -> _Key:
    return place.conditioning, place.picture, binding_id


def _mean_over_sites(
    seen: Sequence[Tensor], binding_ids: Sequence[int], size: tuple[int, int]
) -> dict[int, Tensor]:
    """The contrast of each subject's map, `[rows, height, width]`, over sites of several grids."""
    subjects = list(dict.fromkeys(binding_ids))
    member = torch.tensor([[each == of for each in binding_ids] for of in subjects])
    by_grid: dict[torch.Size, list[Tensor]] = {}
    for each in seen:
        by_grid.setdefault(each.shape, []).append(each)
    shown, weights = [], []
    for maps in by_grid.values():
        stacked = torch.stack(maps)
        of_subjects = torch.einsum("mt,srthw->srmhw", member.to(stacked), stacked)
        weight = comparability(of_subjects)
        weighted = (contrast(of_subjects) * weight).sum(dim=0)
        shown.append(functional.interpolate(weighted, size=size, mode="bilinear"))
        weights.append(weight.sum(dim=0))
    mean = torch.stack(shown).sum(dim=0) / torch.stack(weights).sum(dim=0).clamp_min(SMALLEST)
    return dict(zip(subjects, mean.unbind(dim=1), strict=True))


class Sampling:
    """The state of one sampling.

    Args:
        noise_levels: of the steps, falling, and the last one's end.
        separates: whether subjects compete.
    """

    def __init__(
        self, noise_levels: Sequence[float], separates: bool, recorders: Sequence[Recorder]
    ) -> None:
        self._noise_levels = tuple(noise_levels)
        self.maps = SubjectMaps() if separates else None
        self.recorders = tuple(recorders)
        for each in self.recorders:
            each.record.begin(self._num_steps)

    @property
    def _num_steps(self) -> int:
        return max(len(self._noise_levels) - 1, 1)

    def watch(self, noise_level: float | None, places: Sequence[Place]) -> CallWatch | None:
        """What is to look on during one call of the UNet, if anything.

        Args:
            noise_level: of the call; needed where maps are recorded.
        """
        step = self._step_at(noise_level) if noise_level is not None else 0
        records = any(each.record.plan.wants_step(step, self._num_steps) for each in self.recorders)
        if self.maps is None and not records:
            return None
        return CallWatch(self, places, step, any_values(self.recorders, step, self._num_steps))

    def _step_at(self, noise_level: float) -> int:
        """The step in which a noise level is; samplers also call the model between two."""
        reached = sum(each >= noise_level * (1.0 - 1e-4) for each in self._noise_levels[:-1])
        return max(reached - 1, 0)

    def learn(self, sightings: Sequence[Sighting], places: Sequence[Place], step: int) -> None:
        """Takes in what one call of the UNet has shown."""
        if self.maps is not None:
            self.maps.learn(sightings, places)
        for each in self.recorders:
            each.add(sightings, places, step, self._num_steps)


class CallWatch:
    """Looks on during one call of the UNet."""

    def __init__(
        self,
        sampling: Sampling,
        places: Sequence[Place],
        step: int,
        value_sites: frozenset[AttentionSite],
    ) -> None:
        self._sampling, self._places, self._step = sampling, places, step
        self._value_sites = value_sites
        self._sightings: list[Sighting] = []

    def saw(self, sighting: Sighting, tokens: Sequence[BoundToken], text_value: Tensor) -> None:
        """One site's attention. The tokens' values are looked at here and not kept."""
        if sighting.site in self._value_sites:
            pictures = [_value_pictures(each, text_value, sighting.grid) for each in tokens]
            sighting = replace(sighting, values=tuple(zip(*pictures, strict=True)))
        self._sightings.append(sighting)

    def finish(self) -> None:
        """The call is over."""
        self._sampling.learn(self._sightings, self._places, self._step)


def _value_pictures(
    token: BoundToken, text_value: Tensor, grid: tuple[int, int]
) -> list[ValuePicture]:
    """u(q) of one bound token for every row."""
    text = text_value.take_along_dim(token.position.view(-1, 1, 1, 1), dim=2)
    blended = blended_values(token, text_value)
    return [value_picture(*each, grid) for each in zip(blended, text, strict=True)]
