"""Sites: the attention layers in which a subject acts, and how a user selects some of them.

What a site is made of, how its name is written and in which order a model runs through its sites,
only the model's family knows: see `families`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from .errors import SiteError


@runtime_checkable
class Site(Protocol):
    """One attention layer that reads the text, hashable."""

    @property
    def path(self) -> str:
        """The form used in encoder files, `sites.PATH.to_k.weight`."""
        ...

    @property
    def text(self) -> str:
        """The short form that users read and write."""
        ...


SiteT = TypeVar("SiteT", bound=Site)


@runtime_checkable
class SiteTerm(Protocol):
    """One term of a selector, in its family's grammar."""

    @property
    def negated(self) -> bool:
        """Whether it leaves its sites out."""
        ...

    def matches(self, site: Any) -> bool:
        """Whether the term names this site, negated or not."""
        ...

    def unmatched(self, sites: Iterable[Any]) -> str:
        """The message where it names none of these sites, which are the model's."""
        ...


@dataclass(frozen=True)
class SiteSelector:
    """A parsed selector. No terms select every site; only negated terms select all but those."""

    terms: tuple[SiteTerm, ...] = ()

    def select(self, sites: Iterable[SiteT]) -> frozenset[SiteT]:
        """The selected ones of a model's `sites`.

        Raises:
            SiteError: a term names no site of the model; the message lists the sites there are.
        """
        available = frozenset(sites)
        for term in self.terms:
            if not any(term.matches(site) for site in available):
                raise SiteError(term.unmatched(available))
        wanted = [term for term in self.terms if not term.negated]
        unwanted = [term for term in self.terms if term.negated]
        return frozenset(
            site
            for site in available
            if (not wanted or any(term.matches(site) for term in wanted))
            and not any(term.matches(site) for term in unwanted)
        )


EVERY_SITE = SiteSelector()


def spelled_ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in short: `0-3+7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "+".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
