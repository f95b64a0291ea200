"""Separation pixel by pixel, in float64: the owners found anew, and the value table that they make."""

from __future__ import annotations

from dataclasses import replace

import pack
import reference
import torch
from torch.nn import functional

competition = pack.module("nested_core.competition")

KEPT = 0.9  # of what was known, when a call has shown more


class NaiveSeparation:
    """Value tables for `reference` in which every pixel hears its owners, from their own evidence.

    Each row of the batch has evidence of its own, by its subjects: prompts that name the same ones
    need a `NaiveSubject` each. A call of the UNet is over when a site sees the row again: then what it
    showed counts.

    Args:
        separation: in [0, 1].
        row_key: (slots, options, row) -> a name for whose prompt and which place the row is, the
            picture last; by the row's position unless given.
    """

    def __init__(self, separation, row_key=None):
        self.separation = separation
        self.row_key = row_key or _row_key
        self.known = {}  # evidence on the grid of the latents, by row and subject
        self.shown = {}  # maps of the call, by row, then by site; a map for each subject there

    def __call__(self, site, q, k, v, slots, options, row):
        tables, logits = reference._value_tables(site, q, k, v, slots, options, row)
        acting = _acting(slots, options)
        here = {each: places for each, places in acting.items() if each.sites(site)}
        if not here:
            return tables, logits
        row_key = self.row_key(slots, options, row)
        owned = self._see(row_key, site, here, q, k, options, list(acting))
        if owned is None:
            return tables, logits
        shares, taken = owned
        offers = _offers(site, q, k, v, here, options, row)
        for places in here.values():
            for position in places:
                text = v[:, position][:, None]
                of_owners = sum(
                    shares[list(acting).index(owner), None, :, None]
                    * owner.strength
                    * (offers[owner] - text)
                    for owner in here
                )
                own = tables[:, :, position] - text
                tables[:, :, position] = text + (1 - taken) * own + taken * of_owners
        return tables, logits

    def _see(self, row_key, site, here, q, k, options, acting):
        """Takes the site's maps in; the shares of those who act, and how far they count there."""
        attention = (torch.einsum("hpd,htd->hpt", q, k) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
        grid = tuple(options["activations_shape"][-2:])
        maps = {each: attention[:, places].sum(-1).view(grid) for each, places in here.items()}
        return self.see(row_key, site, maps, acting, _latent_size(options))

    def see(self, row_key, site, maps, acting, size, frame=0):
        """The same of maps `[height, width]`, one for each subject at the site, of a video's frame."""
        row_key = (frame, *row_key)
        shown = self.shown.setdefault(row_key, {})
        if site in shown:
            self._learn(row_key, shown, size)
            shown.clear()
        shown[site] = maps
        (grid,) = {tuple(each.shape) for each in maps.values()}
        return self._owned(row_key, acting, size, grid, frame)

    def _learn(self, row_key, shown, size):
        """Sites where the same subjects acted are news together."""
        for group in {tuple(maps): None for maps in shown.values()}:
            sites = [torch.stack(list(m.values())) for m in shown.values() if tuple(m) == group]
            total, weight = 0.0, 0.0
            for maps in sites:
                logarithm = maps.clamp_min(1e-6).log()
                news = maps.mean((1, 2)).min().sqrt()
                contrast = (logarithm - logarithm.mean((1, 2), keepdim=True)) * news
                total = total + functional.interpolate(contrast[None], size, mode="bilinear")
                weight = weight + news
            for each, evidence in zip(group, total[0] / weight, strict=True):
                known = self.known.get((row_key, each))
                if known is not None:
                    evidence = KEPT * known + (1 - KEPT) * evidence
                self.known[row_key, each] = evidence

    def _owned(self, row_key, acting, size, grid, frame):
        if len(acting) < 2 or not self.separation:
            return None
        known = [self.known.get((row_key, each)) for each in acting]
        masks = [_mask(each, frame, row_key[-1], size) for each in acting]
        if any(each is None for each in known):
            if any(each is None for each in masks):
                return None
            known = [torch.zeros(size)] * len(acting)
        found = competition.ownership(torch.stack(known).float(), masks)
        shares, is_open = (
            functional.interpolate(each[None], grid, mode="area")[0].double().flatten(1)
            for each in found
        )
        return shares, self.separation * is_open[:, :, None]


def _row_key(slots, options, row):
    """Whose prompt, and which picture of the batch."""
    kinds = options["cond_or_uncond"]
    batch = options["original_shape"][0] // len(kinds)
    return kinds[row // batch], frozenset(slots.values()), row % batch


def _latent_size(options):
    return tuple(options["original_shape"][-2:])


def _mask(subject, frame, picture, size):
    if subject.mask is None:
        return None
    mask = subject.mask[:, None] if subject.mask.ndim == 3 else subject.mask
    resized = functional.interpolate(mask, size, mode="area")[picture % len(mask)]
    return resized[frame % len(resized)]


def _acting(slots, options):
    """The subjects that act now, each with its places."""
    sigma = float(options["sigmas"][0])
    found = {}
    for position, subject in slots.items():
        start, end = subject.window
        if end <= sigma <= start:
            found.setdefault(subject, []).append(position)
    return found


def _offers(site, q, k, v, subjects, options, row):
    """v*(q) of each subject, the mean over its places."""
    alone = {
        position: replace(subject, strength=1.0, token_weight=1.0, mask=None)
        for subject, places in subjects.items()
        for position in places
    }
    stars, _ = reference._value_tables(site, q, k, v, alone, options, row)
    return {each: stars[:, :, places].mean(2) for each, places in subjects.items()}
