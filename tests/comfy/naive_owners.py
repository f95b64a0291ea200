"""Separation pixel by pixel, in float64: the owners found anew, and the value table that they make."""

from __future__ import annotations

import pack
import reference
import torch
from torch.nn import functional

competition = pack.module("nested_core.competition")


class NaiveOwners:
    """The value table in which every pixel hears its owners, in float64, from its own evidence.

    Reads the tables of `reference`, made with full strength and without masks: there a bound
    position holds v*(q).
    """

    def __init__(self, subjects, separation, masks=None, size=(16, 12)):
        self.subjects, self.separation, self.size = subjects, separation, size
        self.masks = masks or [None] * len(subjects)
        self.evidence, self.sigma, self.seen = None, None, []
        self.make = reference._value_tables

    def __call__(self, site, q, k, v, slots, options, row):
        if not slots:
            return self.make(site, q, k, v, slots, options, row)
        grid = tuple(options["activations_shape"][-2:])
        tables, logits = self.make(site, q, k, v, slots, options, row)
        stars = tables.clone()
        self._step(float(options["sigmas"][0]))
        weights = logits.softmax(-1).mean(0)
        maps = torch.stack([weights[:, places].sum(-1) for places in self.subjects])
        self.seen.append(maps.view(len(maps), *grid))
        regions = [reference._region(mask, grid, row) for mask in self.masks]
        owned, taken = self._owned(grid)
        for own, places in enumerate(self.subjects):
            for position in places:
                text = v[:, position][:, None]
                offered = regions[own] * (stars[:, :, position] - text)
                if owned is not None:
                    owners = [
                        share[None, :, None] * (stars[:, :, theirs].mean(2) - text)
                        for share, theirs in zip(owned, self.subjects, strict=True)
                    ]
                    offered = (1 - taken) * offered + taken * sum(owners)
                tables[:, :, position] = text + offered
        return tables, logits

    def _step(self, sigma):
        """A call is over when another begins: then its maps count."""
        if self.sigma not in (None, sigma):
            total, weight = 0.0, 0.0
            for maps in self.seen:
                logarithm = maps.clamp_min(1e-6).log()
                news = maps.mean((1, 2)).min().sqrt()
                contrast = (logarithm - logarithm.mean((1, 2), keepdim=True)) * news
                total = total + functional.interpolate(contrast[None], self.size, mode="bilinear")
                weight = weight + news
            shown = total[0] / weight
            known = self.evidence
            self.evidence = shown if known is None else 0.9 * known + 0.1 * shown
            self.seen = []
        self.sigma = sigma

    def _owned(self, grid):
        """Whose each pixel is, and how far that counts there."""
        if self.evidence is None and any(mask is None for mask in self.masks):
            return None, 0.0
        nothing_seen = torch.zeros(len(self.masks), *self.size)
        evidence = nothing_seen if self.evidence is None else self.evidence.float()
        masks = [
            None
            if mask is None
            else functional.interpolate(mask[None], self.size, mode="area")[0, 0]
            for mask in self.masks
        ]
        found, open_to_all = competition.ownership(evidence, masks)
        found, open_to_all = (
            functional.interpolate(each[None], grid, mode="area")[0].double().flatten(1)
            for each in (found, open_to_all)
        )
        return found, self.separation * open_to_all[:, :, None]
