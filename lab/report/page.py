"""The page: what was claimed, how it was measured, what came out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from . import sections
from .figures import FIGURES
from .requirements import requirements
from .results import Results
from .several import GroupResults, group_figure, group_section

BEGIN = "<!-- conclusions: written by hand, kept when this page is written again -->"
END = "<!-- end of conclusions -->"
_NOTHING = "None have been written yet."


def write_report(page: Path, results: Results, several: GroupResults | None = None) -> None:
    """Writes the page and, beside it, its figures; what stands between the marks stays."""
    earlier = page.read_text(encoding="utf-8") if page.exists() else ""
    page.parent.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name, draw in FIGURES.items():
        image = draw(results)
        if image is not None:
            figures[name] = f"{page.stem}-{name}.png"
            image.save(page.parent / figures[name], optimize=True)
    if several is not None:
        figures["several"] = f"{page.stem}-several.png"
        group_figure(several).save(page.parent / figures["several"], optimize=True)
    text = "\n\n".join(_paragraphs(results, figures, conclusions_of(earlier), several))
    page.write_text(text + "\n", encoding="utf-8")


def conclusions_of(page: str) -> str:
    """What somebody wrote between the marks of an earlier version of the page."""
    match = re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", page, re.DOTALL)
    return (match[1].strip() if match else "") or _NOTHING


def _paragraphs(
    results: Results,
    figures: dict[str, str],
    conclusions: str,
    several: GroupResults | None,
) -> Iterator[str]:
    yield sections.introduction(results)
    yield f"## Conclusions\n\n{BEGIN}\n\n{conclusions}\n\n{END}"
    for heading, write, figure in _SECTIONS:
        if heading == _LAST and several is not None:
            yield f"## Several subjects\n\n{group_section(several)}"
            yield f"![Several subjects]({figures['several']})"
        text = write(results)
        if text:
            yield f"## {heading}\n\n{text}"
            if figure in figures:
                yield f"![{heading}]({figures[figure]})"


_LAST = "Every figure"
_SECTIONS: tuple[tuple[str, Callable[[Results], str], str], ...] = (
    ("What is claimed", sections.claims, ""),
    ("How it was measured", sections.method, ""),
    ("The shipped encoder", sections.shipped, "styles"),
    ("What was asked for", requirements, ""),
    ("Pictures", sections.pictures, "examples"),
    ("Identity against prompt", sections.curve, "curve"),
    ("What each part is worth", sections.ablations, "ablations"),
    (_LAST, sections.everything, ""),
    ("How to repeat it", sections.repeat, ""),
)
