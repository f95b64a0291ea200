"""The page: what was claimed, how it was measured, what came out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from . import figures, sections
from .examples import example_sheet
from .requirements import requirements
from .results import Results
from .several import several, several_figure

BEGIN = "<!-- conclusions: written by hand, kept when this page is written again -->"
END = "<!-- end of conclusions -->"
_NOTHING = "None have been written yet."

# Each heading, what stands under it (nothing where its methods were not measured), and its figure:
# the ending of the file's name, and what draws it.
_Figure = tuple[str, Callable[[Results], Image.Image | None]]
_SECTIONS: tuple[tuple[str, Callable[[Results], str], _Figure | None], ...] = (
    ("What is claimed", sections.claims, None),
    ("How it was measured", sections.method, None),
    ("The shipped encoder", sections.shipped, ("styles", figures.styles)),
    ("What was asked for", requirements, None),
    ("Pictures", sections.pictures, ("examples", example_sheet)),
    ("Identity against prompt", sections.curve, ("curve", figures.curve)),
    ("What each part is worth", sections.ablations, ("ablations", figures.ablations)),
    ("Several subjects", several, ("several", several_figure)),
    ("Every figure", sections.everything, None),
    ("How to repeat it", sections.repeat, None),
)


def write_report(page: Path, results: Results) -> None:
    """Writes the page and, beside it, its figures; what stands between the marks stays."""
    earlier = page.read_text(encoding="utf-8") if page.exists() else ""
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        sections.introduction(results),
        f"## Conclusions\n\n{BEGIN}\n\n{conclusions_of(earlier)}\n\n{END}",
    ]
    for heading, write, figure in _SECTIONS:
        text = write(results)
        if not text:
            continue
        parts.append(f"## {heading}\n\n{text}")
        if figure is not None:
            ending, draw = figure
            image, file = draw(results), f"{page.stem}-{ending}.png"
            if image is not None:
                image.save(page.parent / file, optimize=True)
                parts.append(f"![{heading}]({file})")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def conclusions_of(page: str) -> str:
    """What somebody wrote between the marks of an earlier version of the page."""
    match = re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", page, re.DOTALL)
    return (match[1].strip() if match else "") or _NOTHING
