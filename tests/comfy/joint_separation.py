"""Separation in diffusion transformers, in float64: the value table in which every pixel hears its owners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from joint_value_table import JointSubject, JointValueTable, RowSlots, Slots
from reference_separation import NaiveSeparation
from torch import Tensor


class JointSeparation(JointValueTable):
    """As `JointValueTable`.

    Attributes:
        maps: what the subjects' sites have shown, in the order in which they were run: site, row,
            subject, and the map, `[frames, height, width]`.
    """

    def __init__(self, row_slots: RowSlots, separation: float):
        super().__init__(row_slots)
        self.maps: list[tuple[str, int, JointSubject, Tensor]] = []
        self._separation = NaiveSeparation(separation)

    def _tables(
        self, q: Tensor, logits: Tensor, v: Tensor, slots: Slots, options: Any, row: int
    ) -> tuple[Tensor, Tensor]:
        tables, weighted = super()._tables(q, logits, v, slots, options, row)
        site, places = self._site, dict[JointSubject, list[int]]()
        assert site is not None
        for position, subject in slots.items():
            if subject.window[1] <= float(options["sigmas"][0]) <= subject.window[0]:
                places.setdefault(subject, []).append(position)
        here = {each: where for each, where in places.items() if each.sites(site)}
        if not here:
            return tables, weighted
        attention = logits.softmax(-1).mean(0).unflatten(0, self._grid)
        maps = {each: attention[..., where].sum(-1) for each, where in here.items()}
        self.maps += [(site, row, each, shown) for each, shown in maps.items()]
        kinds = options["cond_or_uncond"]
        batch = self._latent_shape[0] // len(kinds)
        key = (kinds[row // batch], frozenset(slots.values()), row % batch)
        size = self._latent_shape[-2:]
        of_frames = [
            self._separation.see(
                key,
                site,
                {each: shown[frame] for each, shown in maps.items()},
                list(places),
                size,
                frame,
            )
            for frame in range(self._grid[0])
        ]
        owned = [each for each in of_frames if each is not None]
        if not owned:
            return tables, weighted
        shares, taken = (torch.cat(each, dim=1) for each in zip(*owned, strict=True))
        offers = self._offers(q, logits, v, here, options, row)
        for where in here.values():
            for position in where:
                text = v[:, position][:, None]
                of_owners = sum(
                    shares[list(places).index(owner), None, :, None]
                    * owner.strength
                    * (offers[owner] - text)
                    for owner in here
                )
                own = tables[:, :, position] - text
                tables[:, :, position] = text + (1 - taken) * own + taken * of_owners
        return tables, weighted

    def _offers(
        self, q: Tensor, logits: Tensor, v: Tensor, here: Any, options: Any, row: int
    ) -> dict[JointSubject, Tensor]:
        """v*(q) of each subject, the mean over its places."""
        alone = {
            position: replace(subject, strength=1.0, token_weight=1.0, mask=None)
            for subject, where in here.items()
            for position in where
        }
        stars, _ = super()._tables(q, logits, v, alone, options, row)
        return {each: stars[:, :, where].mean(2) for each, where in here.items()}
