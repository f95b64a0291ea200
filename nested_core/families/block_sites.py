"""The attention layers of diffusion transformers: numbered blocks, in one or two streams.

A site is written `s12`: the letter of its kind of block and its number. Flux and Chroma have `d`
(double) and `s` (single) blocks; all other families have `b` blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import SiteError
from ..sites import EVERY_SITE, SiteSelector, spelled_ranges


@dataclass(frozen=True)
class BlockKind:
    """One kind of block: its letter in selectors, and how a site's path begins and ends."""

    letter: str
    prefix: str
    suffix: str = ""

    def path(self, number: int) -> str:
        """The form used in encoder files."""
        return f"{self.prefix}.{number}{self.suffix}"


@dataclass(frozen=True)
class BlockSite:
    """One attention layer that reads the text."""

    kind: BlockKind
    number: int

    @property
    def text(self) -> str:
        """The short form, `s12`."""
        return f"{self.kind.letter}{self.number}"

    @property
    def path(self) -> str:
        """The form used in encoder files, `single.12`."""
        return self.kind.path(self.number)


@dataclass(frozen=True)
class BlockTerm:
    """One term of a selector. `None` for numbers means all of them; ranges are inclusive."""

    text: str
    negated: bool
    kind: BlockKind
    numbers: range | None
    kinds: BlockKinds

    def matches(self, site: BlockSite) -> bool:
        """Whether the term names this site (its `!` left aside)."""
        return site.kind == self.kind and (self.numbers is None or site.number in self.numbers)

    def unmatched(self, sites: Iterable[BlockSite]) -> str:
        """What to say where a model's sites have none of this name."""
        return (
            f"Sites '{self.text}': this model has no such block. It has {self.kinds.describe(sites)}. "
            "Use one of those, or leave 'sites' empty for all of them."
        )


@dataclass(frozen=True)
class BlockKinds:
    """The kinds of blocks of one family, in the order of the model's run."""

    kinds: tuple[BlockKind, ...]

    def site(self, path: str) -> BlockSite:
        """The site of an encoder file's name.

        Raises:
            SiteError: no path of this family.
        """
        for kind in self.kinds:
            pattern = rf"{re.escape(kind.prefix)}\.([0-9]{{1,4}}){re.escape(kind.suffix)}"
            match = re.fullmatch(pattern, path)
            if match is not None and path == kind.path(int(match[1])):
                return BlockSite(kind, int(match[1]))
        expected = " or ".join(kind.path(0) for kind in self.kinds)
        raise SiteError(f"Site '{path}': expected a path such as {expected}.")

    def in_network_order(self, sites: Iterable[BlockSite]) -> list[BlockSite]:
        """Kind by kind, each by number."""
        return sorted(sites, key=lambda site: (self.kinds.index(site.kind), site.number))

    def describe(self, sites: Iterable[BlockSite]) -> str:
        """A short listing for messages: `d0-18 s0-37`."""
        sites = self.in_network_order(sites)
        listed = {
            kind.letter: [site.number for site in sites if site.kind == kind] for kind in self.kinds
        }
        return " ".join(
            f"{letter}{spelled_ranges(found)}" for letter, found in listed.items() if found
        )

    def parse(self, text: str) -> SiteSelector:
        """A selector from its text: comma-separated terms `[!]LETTER[NUMBER or A-B]`.

        Raises:
            SiteError: a term does not follow the grammar, or a range runs backwards.
        """
        if not text.strip():
            return EVERY_SITE
        return SiteSelector(tuple(self._term(term.strip()) for term in text.split(",")))

    def _term(self, text: str) -> BlockTerm:
        by_letter = {kind.letter: kind for kind in self.kinds}
        letters = "".join(by_letter)
        match = re.fullmatch(rf"(!)?([{letters}])(?:([0-9]{{1,4}})(?:-([0-9]{{1,4}}))?)?", text)
        if match is None:
            some = letters[0]
            raise SiteError(
                f"Sites: cannot read the term '{text}'. Expected comma-separated terms like {some}, "
                f"{letters[-1]}0, {some}3-5 or !{some} ({_spelled(self.kinds)}; ! leaves a term out)."
            )
        first = None if match[3] is None else int(match[3])
        last = first if match[4] is None else int(match[4])
        if first is not None and last is not None and last < first:
            raise SiteError(
                f"Sites: the range {first}-{last} in '{text}' runs backwards. Write {last}-{first}."
            )
        numbers = None if first is None or last is None else range(first, last + 1)
        return BlockTerm(text, match[1] is not None, by_letter[match[2]], numbers, self)


def _spelled(kinds: Sequence[BlockKind]) -> str:
    letters = ", ".join(kind.letter for kind in kinds)
    return f"{letters} = {', '.join(kind.prefix for kind in kinds)}"
