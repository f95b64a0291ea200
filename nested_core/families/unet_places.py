"""Which site each key and value projection of a foreign file belongs to.

A key names its place, or has a number. The numbers of a list are understood where exactly one known
way of counting gives, together with the places that other keys name, all sites of a base model with
its widths. Where several ways fit, tensors that are written under two names tell: the right way is
the one by which they are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from ..tensor_names import KEY_WORDS, VALUE_WORDS, plain
from .family import IsSame, Layout, Places, Projections
from .unet_names import (
    LAYOUTS,
    DiffusersPlace,
    Numbering,
    known_numberings,
    layers_per_block,
    named_place,
)
from .unet_sites import AttentionSite

_MAX_LISTS = 2  # over all attention layers, and over the cross-attentions alone


@dataclass(frozen=True)
class _Way:
    """One way of counting each list."""

    numberings: tuple[Numbering, ...]
    sites: Mapping[str, AttentionSite]

    @property
    def label(self) -> str:
        return " and ".join(dict.fromkeys(each.label for each in self.numberings))


def find_places(projections: Projections, base: Projections, is_same: IsSame) -> Places:
    """The site of each projection.

    Args:
        projections: those to be placed.
        base: the keys and values of the cross-attentions of the base model in the same file.
        is_same: whether two of the file's tensors are equal.
    """
    found = Places()
    named = {key: place for key in projections if (place := named_place(key)) is not None}
    base_places = {key: place for key in base if (place := named_place(key)) is not None}
    layers = layers_per_block(
        place
        for place in (*named.values(), *base_places.values())
        if isinstance(place, DiffusersPlace)
    )
    if layers is None:
        found.problems.append(
            "The attentions in the names (down_blocks.B.attentions.A, ...) are not those of a UNet "
            "with equally many layers in each down block and one more in each up block"
        )
        return found
    found.sites = {key: _site(place, layers) for key, place in named.items()}
    others = {
        key: projection
        for key, projection in projections.items()
        if key not in named and "attn1" not in plain(key).split(".")
    }
    base_dims = _dims({key: _site(place, layers) for key, place in base_places.items()}, base)
    if others:
        _place_lists(found, projections, others, base_dims or {}, is_same)
    return found


def _site(place: AttentionSite | DiffusersPlace, layers: int) -> AttentionSite:
    return place.site(layers) if isinstance(place, DiffusersPlace) else place


def _place_lists(
    found: Places,
    projections: Projections,
    others: Projections,
    base_dims: Mapping[AttentionSite, int],
    is_same: IsSame,
) -> None:
    """Adds the sites of the keys that name none, or the reason why they cannot be told."""
    lists = _numbered_lists(others)
    if lists is None:
        if not found.sites:
            found.problems.append(
                "The places of the key and value projections cannot be told: expected block names, "
                "or exactly one number that differs from key to key"
            )
        return
    layouts = [Layout("base", "this file's own base model", base_dims)] if base_dims else LAYOUTS
    known = list(known_numberings(layouts))
    ways = list(_fitting_ways(found.sites, projections, lists, known))
    if len(ways) > 1:
        ways = [
            way for way in ways if _doubles_agree(found.sites, projections, way, is_same)
        ] or ways
    if not ways:
        found.problems.append(_nearest(known, lists, found.sites))
    elif len(ways) > 1:
        labels = "; or as ".join(way.label for way in ways)
        found.problems.append(f"The numbered places can be read as {labels}")
    else:
        found.notes.append(f"The places are those of {ways[0].label}; no other known way fits.")
        found.sites |= ways[0].sites


def _numbered_lists(keys: Iterable[str]) -> list[dict[str, int]] | None:
    """The number of each key's place, for each list of keys that differ in their numbers alone.

    None where it cannot be told which number it is.
    """
    lists: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for key in keys:
        words = re.split("[._-]", plain(key).lower())
        numbers = [int(word) for word in words if re.fullmatch("[0-9]{1,6}", word)]
        lists.setdefault(tuple(map(_neutral, words)), {})[key] = numbers
    numbers_of_lists = [_places_of(rows) for rows in lists.values()]
    numbered = [places for places in numbers_of_lists if places is not None]
    return numbered if len(numbered) == len(numbers_of_lists) <= _MAX_LISTS else None


def _neutral(word: str) -> str:
    """So that the lists of keys and of values are one."""
    if word in KEY_WORDS | VALUE_WORDS:
        return "*"
    return "#" if word.isdecimal() else word


def _places_of(rows: Mapping[str, list[int]]) -> dict[str, int] | None:
    columns = list(zip(*rows.values(), strict=True))
    varying = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    # A list of one entry.
    if not varying and len(columns) == 1:
        varying = [0]
    if len(varying) != 1:
        return None
    return {key: row[varying[0]] for key, row in rows.items()}


def _fitting_ways(
    named: Mapping[str, AttentionSite],
    projections: Projections,
    lists: list[dict[str, int]],
    known: Iterable[Numbering],
) -> Iterator[_Way]:
    """Every way of counting by which named and numbered places together are a base model's."""
    by_layout: dict[str, list[Numbering]] = {}
    for numbering in known:
        by_layout.setdefault(numbering.layout.label, []).append(numbering)
    seen: list[Mapping[str, AttentionSite]] = []
    for numberings in by_layout.values():
        usable = [
            [each for each in numberings if each.sites.keys() >= set(numbers.values())]
            for numbers in lists
        ]
        for chosen in product(*usable):
            sites = {
                key: numbering.sites[number]
                for numbering, numbers in zip(chosen, lists, strict=True)
                for key, number in numbers.items()
            }
            dims = _dims({**named, **sites}, projections)
            # A part of a list may be counted in two ways that say the same.
            if dims is not None and chosen[0].layout.fits(dims) and sites not in seen:
                seen.append(sites)
                yield _Way(chosen, sites)


def _dims(
    sites: Mapping[str, AttentionSite], projections: Projections
) -> dict[AttentionSite, int] | None:
    """Each site's width; None where its tensors have several."""
    dims: dict[AttentionSite, int] = {}
    for key, site in sites.items():
        if dims.setdefault(site, projections[key].width) != projections[key].width:
            return None
    return dims


def _doubles_agree(
    named: Mapping[str, AttentionSite], projections: Projections, way: _Way, is_same: IsSame
) -> bool:
    """Whether all tensors that this way takes for the same projection are equal."""
    keys_of: dict[tuple[AttentionSite, str], list[str]] = {}
    for key, site in {**named, **way.sites}.items():
        keys_of.setdefault((site, projections[key].kind), []).append(key)
    return all(is_same(one, other) for keys in keys_of.values() for one, other in pairwise(keys))


def _nearest(
    known: Iterable[Numbering],
    lists: list[dict[str, int]],
    named: Mapping[str, AttentionSite],
) -> str:
    """Why the numbers fit no known way, told by the way that shares most numbers with them."""
    longest = max(lists, key=len)
    numbers = set(longest.values())
    best = max(known, key=lambda way: len(way.sites.keys() & numbers) - len(way.sites) / 1000)
    missing, surplus = sorted(best.sites.keys() - numbers), sorted(numbers - best.sites.keys())
    if named:
        return (
            f"The {len(numbers)} numbered places fit no known way of counting beside the "
            f"{len(set(named.values()))} that other keys name"
        )
    if not missing and not surplus:
        return (
            f"The places are numbered as {best.label}, but the widths are not those of its layers"
        )
    return (
        f"The {len(numbers)} numbered places fit no known way of counting; nearest is {best.label}, "
        f"of which {missing or 'none'} are missing and {surplus or 'none'} are too many"
    )
