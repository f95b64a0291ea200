"""Markdown of the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .results import NONE, Results
from .scores import ALL, FIGURES, STYLES, Estimate, difference, estimate, of_style


def table(header: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """So many columns of words, to the left; all others are figures, to the right."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def plain(found: Estimate, digits: int = 2) -> str:
    """The mean and its interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def signed(found: Estimate) -> str:
    """The same of a difference."""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def of_method(results: Results, name: str, figure: str, style: str = ALL) -> Estimate:
    """A figure of a method."""
    return estimate(of_style(getattr(results.scores[name], figure), style))


def gain(results: Results, name: str, figure: str, style: str = ALL) -> Estimate:
    """What a method adds to drawing without personalisation, on the same identities."""
    return difference(results.scores[name], results.scores[NONE], figure, style)


def overview(results: Results, names: Sequence[str]) -> str:
    """A line for each method, over all styles."""
    lines = []
    for name in names:
        found = [of_method(results, name, figure) for figure in FIGURES]
        gains = ["", ""]
        if name != NONE and NONE in results.scores:
            gains = [signed(gain(results, name, figure)) for figure in FIGURES[:2]]
        cells = [plain(found[0]), gains[0], plain(found[1]), gains[1], plain(found[2])]
        count = str(results.scores[name].identities)
        lines.append([f"`{name}`", *cells, f"{100 * found[3].mean:.1f} %", count])
    return table(
        [
            "",
            "subject",
            "gain",
            "background",
            "change",
            "whole picture",
            "style obeyed",
            "identities",
        ],
        lines,
    )


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
