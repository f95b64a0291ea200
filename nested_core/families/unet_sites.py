"""The cross-attention layers of a UNet, how they are named, and how a user selects some of them.

A site is written `u0.4`: block letter (`d` down, `m` middle, `u` up), ComfyUI's number of the block
inside `input_blocks` or `output_blocks` (the middle block is 0), and the index of the transformer
block inside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import SiteError
from ..sites import EVERY_SITE, SiteSelector, spelled_ranges

_LETTERS = {"input": "d", "middle": "m", "output": "u"}
_BLOCKS = {letter: block for block, letter in _LETTERS.items()}
_BLOCK_ORDER = {"input": 0, "middle": 1, "output": 2}

_TERM = re.compile(
    r"(?P<negated>!)?(?P<letter>[dmu])"
    r"(?:(?P<first>[0-9]{1,4})(?:-(?P<last>[0-9]{1,4}))?)?"
    r"(?:\.(?P<index_first>[0-9]{1,4})(?:-(?P<index_last>[0-9]{1,4}))?)?"
)
_GRAMMAR = (
    "Expected comma-separated terms like u, m0, u3-5, u3.1, d4.0-1 or !d "
    "(d, m, u = input, middle, output blocks; ! leaves a term out)."
)


class AttentionSite(NamedTuple):
    """One cross-attention layer: block `input`, `middle` or `output`, block number, transformer index."""

    block: str
    number: int
    index: int  # type: ignore[assignment]  (hides the tuple method, which nobody misses)

    @property
    def text(self) -> str:
        """The short form, `u0.4`."""
        return f"{_LETTERS[self.block]}{self.number}.{self.index}"

    @property
    def path(self) -> str:
        """The form used in encoder files, `output.0.4`."""
        return f"{self.block}.{self.number}.{self.index}"

    @classmethod
    def from_path(cls, path: str) -> AttentionSite:
        """The site of an encoder file's name such as `output.0.4`."""
        match = re.fullmatch(r"(input|middle|output)\.([0-9]{1,4})\.([0-9]{1,4})", path)
        if match is None:
            raise SiteError(
                f"Site '{path}': expected BLOCK.NUMBER.INDEX with BLOCK input, middle or output, "
                "such as output.0.4."
            )
        return cls(match[1], int(match[2]), int(match[3]))


def in_network_order(sites: Iterable[AttentionSite]) -> list[AttentionSite]:
    """The sites as the UNet runs through them: input, middle, output, each by number and index."""
    return sorted(sites, key=lambda site: (_BLOCK_ORDER[site.block], site.number, site.index))


def describe_sites(sites: Iterable[AttentionSite]) -> str:
    """A short listing for messages: `d4.0-1 d5.0-1 m0.0-9`."""
    indices: dict[str, list[int]] = {}
    for site in in_network_order(sites):
        indices.setdefault(f"{_LETTERS[site.block]}{site.number}", []).append(site.index)
    return " ".join(f"{block}.{spelled_ranges(found)}" for block, found in indices.items())


@dataclass(frozen=True)
class UNetTerm:
    """One term of a selector. `None` for numbers or indices means all of them; ranges are inclusive."""

    text: str
    negated: bool
    block: str
    numbers: range | None
    indices: range | None

    def matches(self, site: AttentionSite) -> bool:
        """Whether the term names this site (its `!` left aside)."""
        return (
            site.block == self.block
            and (self.numbers is None or site.number in self.numbers)
            and (self.indices is None or site.index in self.indices)
        )

    def unmatched(self, sites: Iterable[AttentionSite]) -> str:
        """What to say where a model's sites have none of this name."""
        sites = in_network_order(sites)
        return (
            f"Sites '{self.text}': this model has no such cross-attention layer. "
            f"It has {describe_sites(sites)}. Use one of those, or leave 'sites' empty for all "
            f"of them.{_counted_elsewhere(sites)}"
        )


def _counted_elsewhere(sites: Sequence[AttentionSite]) -> str:
    first = next((site for site in sites if site.block == "input"), None)
    if first is None:
        return ""
    return (
        " The numbers are ComfyUI's. Other packs count only the blocks that have attention: their d0 "
        f"is d{first.number} here."
    )


def parse_sites(text: str) -> SiteSelector:
    """A selector from its text: comma-separated terms `[!]LETTER[NUMBER or A-B][.INDEX or .A-B]`.

    Raises:
        SiteError: a term does not follow the grammar, or a range runs backwards.
    """
    if not text.strip():
        return EVERY_SITE
    return SiteSelector(tuple(_parse_term(term.strip()) for term in text.split(",")))


def _parse_term(text: str) -> UNetTerm:
    match = _TERM.fullmatch(text)
    if match is None:
        raise SiteError(f"Sites: cannot read the term '{text}'. {_GRAMMAR}")
    return UNetTerm(
        text=text,
        negated=match["negated"] is not None,
        block=_BLOCKS[match["letter"]],
        numbers=_inclusive(match["first"], match["last"], text),
        indices=_inclusive(match["index_first"], match["index_last"], text),
    )


def _inclusive(first: str | None, last: str | None, term: str) -> range | None:
    if first is None:
        return None
    start, stop = int(first), int(last if last is not None else first)
    if stop < start:
        raise SiteError(
            f"Sites: the range {start}-{stop} in '{term}' runs backwards. Write {stop}-{start}."
        )
    return range(start, stop + 1)
