"""Known UNets: which cross-attention layers they have, how others name and in which order they count them.

A place in the UNet is given by name, as diffusers or ComfyUI call its blocks, or by a number.
Numbers are understood only where exactly one known way of counting fits them and the widths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..tensor_names import plain
from .family import Layout
from .unet_sites import AttentionSite, in_network_order

_GAP = r"[._-]"  # names flattened with dots, or with underscores as module dictionaries need it
_DIFFUSERS = re.compile(
    rf"(?<![a-z])(?:(down|up){_GAP}blocks{_GAP}([0-9]{{1,4}})|mid{_GAP}block){_GAP}attentions{_GAP}"
    rf"([0-9]{{1,4}}){_GAP}transformer{_GAP}blocks{_GAP}([0-9]{{1,4}})(?![0-9])"
)
_COMFYUI = re.compile(
    rf"(?<![a-z])(?:(input|output){_GAP}blocks{_GAP}([0-9]{{1,4}})|middle{_GAP}block){_GAP}1{_GAP}"
    rf"transformer{_GAP}blocks{_GAP}([0-9]{{1,4}})(?![0-9])"
)
_NATIVE = re.compile(
    rf"(?<![a-z])(input|middle|output){_GAP}([0-9]{{1,4}}){_GAP}([0-9]{{1,4}})(?![0-9])"
)


class DiffusersPlace(NamedTuple):
    """`down_blocks.1.attentions.0.transformer_blocks.5` in parts; side `down`, `mid` or `up`."""

    side: str
    block: int
    attention: int
    transformer: int

    def site(self, layers_per_block: int) -> AttentionSite:
        """ComfyUI's name of the place: its lists of blocks also count the down- and upsamplers.

        Every down block has `layers_per_block` entries and a downsampler, behind the first
        convolution; every up block has one layer more and its upsampler inside the last one.
        """
        if self.side == "mid":
            return AttentionSite("middle", 0, self.transformer)
        number = (layers_per_block + 1) * self.block + self.attention
        if self.side == "down":
            return AttentionSite("input", 1 + number, self.transformer)
        return AttentionSite("output", number, self.transformer)


def named_place(key: str) -> AttentionSite | DiffusersPlace | None:
    """The place that a key names; None where it names none, two, or a self-attention."""
    key = plain(key).lower()
    if "attn1" in re.split(_GAP, key):
        return None
    places: list[AttentionSite | DiffusersPlace] = [
        DiffusersPlace(match[1] or "mid", int(match[2] or 0), int(match[3]), int(match[4]))
        for match in _DIFFUSERS.finditer(key)
    ]
    for pattern in (_COMFYUI, _NATIVE):
        places += [
            AttentionSite(match[1] or "middle", int(match[2] or 0), int(match[3]))
            for match in pattern.finditer(key)
        ]
    return places[0] if len(places) == 1 else None


def layers_per_block(places: Iterable[DiffusersPlace]) -> int | None:
    """How many layers a down block of the UNet has; None where the places fit no UNet.

    An up block has one layer more. Where down blocks have exactly the attentions 0 to L-1 and up
    blocks 0 to L, that is L; else 2, the number of every Stable Diffusion and SDXL UNet, if no
    attention lies beyond it.
    """
    attentions: dict[tuple[str, int], set[int]] = {}
    for place in places:
        attentions.setdefault((place.side, place.block), set()).add(place.attention)
    down, up, mid = (
        [indices for (side, _), indices in attentions.items() if side == wanted]
        for wanted in ("down", "up", "mid")
    )
    if any(indices != {0} for indices in mid):
        return None
    layers = 1 + max((max(indices) for indices in down), default=1)
    is_complete = all(indices == set(range(layers)) for indices in down) and all(
        indices == set(range(layers + 1)) for indices in up
    )
    if down and up and is_complete:
        return layers
    fits_two = all(max(indices) < 2 for indices in down) and all(max(indices) < 3 for indices in up)
    return 2 if fits_two else None


def _layout(name: str, label: str, blocks: Iterable[tuple[str, str, int, int]]) -> Layout:
    """Rows of: block, its numbers, transformer blocks in each, inner width."""
    widths = {
        AttentionSite(block, int(number), index): width
        for block, numbers, depth, width in blocks
        for number in numbers.split()
        for index in range(depth)
    }
    return Layout(name, label, widths)


# Sites in the order of the UNet's run: input, middle, output.
LAYOUTS = (
    _layout(
        "sdxl",
        "SDXL",
        [
            ("input", "4 5", 2, 640),
            ("input", "7 8", 10, 1280),
            ("middle", "0", 10, 1280),
            ("output", "0 1 2", 10, 1280),
            ("output", "3 4 5", 2, 640),
        ],
    ),
    _layout(
        "sd15",
        "SD1.5",
        [
            ("input", "1 2", 1, 320),
            ("input", "4 5", 1, 640),
            ("input", "7 8", 1, 1280),
            ("middle", "0", 1, 1280),
            ("output", "3 4 5", 1, 1280),
            ("output", "6 7 8", 1, 640),
            ("output", "9 10 11", 1, 320),
        ],
    ),
)


@dataclass(frozen=True)
class Numbering:
    """One way of numbering a layout's sites."""

    layout: Layout
    label: str
    sites: Mapping[int, AttentionSite]


def known_numberings(layouts: Iterable[Layout] = LAYOUTS) -> Iterator[Numbering]:
    """Every layout, counted in every way that is known.

    IP-Adapter numbers all attention layers in diffusers' order of registration, down, up, middle:
    self-attention is even, cross-attention odd. A list of the cross-attention layers alone counts
    them one by one; such lists also follow the order of the run, down, middle, up.
    """
    orders = {"down, up, middle": "input output middle", "down, middle, up": "input middle output"}
    for layout in layouts:
        for order, blocks in orders.items():
            sites = sorted(
                in_network_order(layout.widths), key=lambda site: blocks.split().index(site.block)
            )
            for first, step in ((1, 2), (0, 1), (1, 1), (0, 2)):
                numbers = {first + step * place: site for place, site in enumerate(sites)}
                counted = ", ".join(str(first + step * place) for place in range(3))
                yield Numbering(
                    layout, f"{layout.label} counted {counted}, ... in the order {order}", numbers
                )
