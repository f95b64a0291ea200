"""What a sampling has shown so far of where each subject is, step after step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ..competition import MEMORY, SMALLEST, comparability, contrast
from .places import Place
from .sighting import Sighting

# A prompt of its own for every picture: what one has shown never moves another.
_Key: TypeAlias = tuple[Place, int]  # with a binding id


@dataclass(eq=False)
class SubjectMaps:
    """Evidence of where each subject is, on the grid of the rows' latents (`competition.py`).

    Of a video, frame by frame: subjects move.
    """

    _known: dict[_Key, Tensor] = field(default_factory=dict[_Key, Tensor])

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
                    self._learn((places[row], binding_id), evidence)

    def _learn(self, key: _Key, evidence: Tensor) -> None:
        known = self._known.get(key)
        if known is not None and known.shape == evidence.shape:
            evidence = known.to(evidence.device).lerp(evidence, 1.0 - MEMORY)
        self._known[key] = evidence

    def evidence(
        self, place: Place, binding_ids: Sequence[int], device: torch.device
    ) -> Tensor | None:
        """Of these subjects in a row, `[frames, subjects, height, width]`; None before all were seen."""
        known = [self._known.get((place, each)) for each in binding_ids]
        maps = [each.to(device) for each in known if each is not None]
        size = (place.height, place.width)
        if len(maps) < len(binding_ids) or any(each.shape[1:] != size for each in maps):
            return None
        return torch.stack(maps, dim=1)


def _mean_over_sites(
    seen: Sequence[Tensor], binding_ids: Sequence[int], size: tuple[int, int]
) -> dict[int, Tensor]:
    """The contrast of each subject's map, `[rows, frames, height, width]`, over sites of several grids."""
    subjects = list(dict.fromkeys(binding_ids))
    member = torch.tensor([[each == of for each in binding_ids] for of in subjects])
    by_grid: dict[torch.Size, list[Tensor]] = {}
    for each in seen:
        by_grid.setdefault(each.shape, []).append(each)
    shown, weights = list[Tensor](), list[Tensor]()
    for maps in by_grid.values():
        stacked = torch.stack(maps)
        of_subjects = torch.einsum("mt,srtfhw->srfmhw", member.to(stacked), stacked)
        weight = comparability(of_subjects)
        weighted = (contrast(of_subjects) * weight).sum(dim=0)
        resized = functional.interpolate(weighted.flatten(0, 1), size=size, mode="bilinear")
        shown.append(resized.view(*weighted.shape[:3], *size))
        weights.append(weight.sum(dim=0))
    mean = torch.stack(shown).sum(dim=0) / torch.stack(weights).sum(dim=0).clamp_min(SMALLEST)
    return dict(zip(subjects, mean.unbind(dim=2), strict=True))
