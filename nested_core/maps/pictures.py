"""The sheets that Show Maps draws from a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..shapes import Float
from .canvas import (
    GAP,
    HEADING,
    beside,
    colour_scale,
    framed,
    in_rows,
    number,
    sheet,
    stack,
    text_line,
)
from .colours import SOFT, blended
from .panels import (
    LARGE,
    MEDIUM,
    SMALL,
    WIDEST,
    colour_of,
    counted,
    evenly,
    extent,
    ground,
    map_image,
    map_size,
    of_picture,
    panel,
    resized,
    subject_name,
    tokens_of,
    top_of_scale,
)
from .record import Grid, MapError, MapRecord, at_peak, finest_first
from .value_sheet import values

_MAX_STEPS = 10
_VIEW_SIDE = 512  # of a live view over an image


def draw_sheet(
    record: MapRecord,
    show: str,
    picture: int = 0,
    image: Float[np.ndarray, "height width 3"] | None = None,
) -> Float[np.ndarray, "sheet_height sheet_width 3"]:
    """A sheet as RGB in [0, 1].

    Args:
        show: a name in `SHEETS`.
        picture: index in the batch.
        image: the finished picture, laid under the maps; `values` does without.

    Raises:
        MapError: the record holds nothing of what is to be shown.
    """
    record.require_maps()
    if picture not in record.pictures:
        known = ", ".join(map(str, record.pictures))
        raise MapError(
            f"Show Maps: no maps of picture {picture} were recorded, only of {known}. Choose one of "
            "those in 'picture' (the first of a batch is 0)."
        )
    return SHEETS[show](record, picture, image)


def overview(
    record: MapRecord, picture: int, image: Float[np.ndarray, "height width 3"] | None
) -> Float[np.ndarray, "sheet_height sheet_width 3"]:
    """Where each subject acts, over everything recorded, and where subjects claim the same pixels."""
    tokens = tokens_of(record, picture)
    means = {token: record.mean(picture, token) for token in tokens}
    top, clipped = top_of_scale(list(means.values()))
    size = map_size(record.finest_grid(picture), LARGE)
    panels: list[Image.Image] = []
    for token, mean in means.items():
        head = subject_name(record, token, "", size[0])
        peak, average = number(float(mean.max())), number(float(mean.mean()))
        panels.append(
            panel(map_image(mean / top, size, image), head, f"peak {peak} · mean {average}")
        )
    legends = [colour_scale(top, "attention to the subject's token", clipped)]
    notes = [extent(record, picture)]
    if len(tokens) > 1:
        second, share = record.overlap(picture, tokens)
        together = framed(live_view(record, picture, image), size, smooth=True)
        head = text_line("all subjects", HEADING)
        panels.append(panel(together, head, "each at its own peak"))
        head = text_line("overlap", HEADING)
        caption = f"{number(share)} (0 apart, 1 alike)"
        panels.append(panel(map_image(second, size, image), head, caption))
        legends.append(colour_scale(1.0, "overlap"))
        notes.append(
            "Overlap: each map divided by its peak, the second largest at every pixel; the number is "
            "its sum by the sum of the largest (0: no pixel listens to two subjects)."
        )
    rows = math.ceil(len(panels) / min(5, WIDEST // (size[0] + 20)))
    body = in_rows(panels, math.ceil(len(panels) / rows), 20, 24)
    return sheet(
        "Where each subject acts" + of_picture(record, picture), notes, [body], beside(legends, 40)
    )


def resolutions(
    record: MapRecord, picture: int, image: Float[np.ndarray, "height width 3"] | None
) -> Float[np.ndarray, "sheet_height sheet_width 3"]:
    """A row for each subject, a column for each size that the layers' grids have."""
    tokens = tokens_of(record, picture)
    rows = {token: record.by_resolution(picture, token) for token in tokens}
    grids = finest_first(grid for row in rows.values() for grid in row)
    top, clipped = top_of_scale([each for row in rows.values() for each in row.values()])
    size = map_size(grids[0], MEDIUM)
    titles = {grid: _grid_title(record, picture, grid) for grid in grids}
    body = [
        _subject_row(
            record,
            token,
            [
                (titles[grid], map_image(rows[token][grid] / top, size, image, smooth=False))
                for grid in grids
                if grid in rows[token]
            ],
        )
        for token in tokens
    ]
    legend = colour_scale(top, "attention to the subject's token", clipped)
    title = "Where each subject acts, by resolution" + of_picture(record, picture)
    return sheet(title, [extent(record, picture)], [_in_columns(body)], legend)


def steps(
    record: MapRecord, picture: int, image: Float[np.ndarray, "height width 3"] | None
) -> Float[np.ndarray, "sheet_height sheet_width 3"]:
    """A row for each subject, a column for each of at most ten steps."""
    tokens = tokens_of(record, picture)
    rows = {token: record.by_step(picture, token) for token in tokens}
    chosen = evenly(sorted({step for row in rows.values() for step in row}), _MAX_STEPS)
    drawn = {token: {s: row[s] for s in chosen if s in row} for token, row in rows.items()}
    top, clipped = top_of_scale([each for row in drawn.values() for each in row.values()])
    size = map_size(record.finest_grid(picture), SMALL, (WIDEST + GAP) // len(chosen) - GAP)
    body = [
        _subject_row(
            record,
            token,
            [(f"step {step}", map_image(row[step] / top, size, image)) for step in row],
        )
        for token, row in drawn.items()
        if row
    ]
    legend = colour_scale(top, "attention to the subject's token", clipped)
    title = "Where each subject acts, step by step" + of_picture(record, picture)
    return sheet(title, [extent(record, picture)], [_in_columns(body)], legend)


def live_view(
    record: MapRecord,
    picture: int = 0,
    image: Float[np.ndarray, "height width 3"] | None = None,
    step: int | None = None,
) -> Float[np.ndarray, "view_height view_width 3"]:
    """Where all subjects act in one picture, each in its colour; over all steps or at one.

    Small and without text: what a preview during sampling shows.
    """
    tokens = tokens_of(record, picture)
    maps = [
        record.mean(picture, token) if step is None else record.by_step(picture, token).get(step)
        for token in tokens
    ]
    pairs = [(token, each) for token, each in zip(tokens, maps, strict=True) if each is not None]
    height, width = record.finest_grid(picture)
    if not pairs:
        return np.zeros((height, width, 3), dtype=np.float32)
    peaked = [at_peak(each) for _, each in pairs]
    size = (width, height) if image is None else map_size((height, width), _VIEW_SIDE)
    shares = np.stack([resized(each, size) for each in peaked])
    return blended(shares, [colour_of(record, token) for token, _ in pairs], ground(image, size))


SheetFunction = Callable[
    [MapRecord, int, "Float[np.ndarray, 'height width 3'] | None"],
    "Float[np.ndarray, 'sheet_height sheet_width 3']",
]
SHEETS: dict[str, SheetFunction] = {
    "overview": overview,
    "resolutions": resolutions,
    "steps": steps,
    "values": values,
}


def _subject_row(
    record: MapRecord, token: str, cells: Sequence[tuple[str, Image.Image]]
) -> Image.Image:
    columns = [
        stack([image, text_line(caption, colour=SOFT, width=image.width)], gap=4)
        for caption, image in cells
    ]
    row = beside(columns, GAP)
    return stack([subject_name(record, token, "", row.width), row], gap=4)


def _in_columns(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks under one another, in several columns where there are many and they fit."""
    gap = 48
    fitting = (WIDEST + gap) // (max(block.width for block in blocks) + gap)
    columns = max(1, min(fitting, math.ceil(len(blocks) / 4)))
    return in_rows(blocks, columns, gap, 24)


def _grid_title(record: MapRecord, picture: int, grid: Grid) -> str:
    sites = {each.site for each in record.select(picture) if each.grid == grid}
    return f"{grid[1]} x {grid[0]} · {counted(len(sites), 'site')}"
