"""Markdown of the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..measures.scores import (
    ALL,
    FIGURES,
    STYLES,
    SUBJECT_AND_BACKGROUND,
    Estimate,
    difference,
    estimate,
    of_style,
)
from .results import NONE, Results


def table(header: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """So many columns of words, to the left; all others are figures, to the right."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def plain(value: Estimate, digits: int = 2) -> str:
    """The mean and its interval."""
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def signed(value: Estimate) -> str:
    """The same of a difference."""
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"


def share(value: Estimate) -> str:
    """The mean of a share."""
    return f"{100 * value.mean:.1f} %"


def of_method(results: Results, name: str, figure: str, style: str = ALL) -> Estimate:
    """A figure of a method."""
    return estimate(of_style(getattr(results.scores[name], figure), style))


def gain(results: Results, name: str, figure: str, style: str = ALL) -> Estimate:
    """What a method adds to drawing without personalisation, on the same identities."""
    return difference(results.scores[name], results.scores[NONE], figure, style)


def overview(results: Results, names: Sequence[str]) -> str:
    """A line for each method, over all styles."""
    header = ["", "subject", "gain", "background", "change", "whole picture", "style obeyed"]
    lines = []
    for name in names:
        subject, background, picture, obeyed = (
            of_method(results, name, figure) for figure in FIGURES
        )
        gains = ["", ""]
        if name != NONE and NONE in results.scores:
            gains = [signed(gain(results, name, figure)) for figure in SUBJECT_AND_BACKGROUND]
        cells = [plain(subject), gains[0], plain(background), gains[1], plain(picture)]
        count = str(results.scores[name].identities)
        lines.append([f"`{name}`", *cells, share(obeyed), count])
    return table([*header, "identities"], lines)


def by_style(results: Results, names: Sequence[str], figure: str) -> str:
    """A line for each style, a column for each method, then their gains."""
    gaining = [name for name in names if name != NONE and NONE in results.scores]
    header = ["", *(f"`{name}`" for name in names), *(f"gain of `{name}`" for name in gaining)]
    lines = [
        [
            style,
            *(plain(of_method(results, name, figure, style)) for name in names),
            *(signed(gain(results, name, figure, style)) for name in gaining),
        ]
        for style in STYLES
    ]
    return table(header, lines)
