"""Where things stand on a sheet: each map under its own name, step and size, of the chosen picture.

Subjects are found by the square of their colour in front of their name.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from map_records import COARSE, FINE, random_values, record_of, spot_at
from numpy.lib.stride_tricks import sliding_window_view
from PIL import ImageDraw

from nested_core.maps import SHEETS, SiteMap, ValuePicture, draw_sheet
from nested_core.maps.canvas import GAP, MARGIN, TITLE
from nested_core.maps.colours import subject_colour
from nested_core.maps.panels import LARGE, MEDIUM, SMALL, map_size

_NAME = 28  # px from the top of a name's square into what stands below
_SQUARE = 12


def _of(token: str, attention: torch.Tensor, step=0, site=FINE, picture=0, values=None) -> SiteMap:
    return SiteMap(step, 4, site, picture, token, attention, values)


def _values(grid: tuple[int, int] = (16, 16)) -> ValuePicture:
    return random_values(grid, text=(0.5, -0.5, 0.25))


def _name_at(sheet: np.ndarray, place: int) -> tuple[int, int]:
    """Left edge and top of the one square in a subject's colour."""
    same = (np.rint(sheet * 255) == subject_colour(place)).all(axis=-1)
    for axis in (0, 1):
        same = sliding_window_view(same, _SQUARE, axis).all(axis=-1)
    ((top, left),) = np.argwhere(same)
    return int(left), int(top)


def _cells(sheet: np.ndarray, side: int, gap: int, count: int, place: int = 0) -> list[np.ndarray]:
    """So many pictures in a row below a subject's name, without their frames."""
    left, top = _name_at(sheet, place)
    width, height = map_size((16, 16), side)
    lefts = [left + n * (width + gap) for n in range(count)]
    top += _NAME
    return [sheet[top : top + height - 8, x + 2 : x + width - 2] for x in lefts]


def _hottest(cell: np.ndarray) -> float:
    """Where a map is lightest, as a share of its width."""
    return float(cell.sum(axis=(0, 2)).argmax()) / cell.shape[1]


@pytest.mark.parametrize(
    "show, side", [("overview", LARGE), ("resolutions", MEDIUM), ("steps", SMALL)]
)
def test_a_map_stands_under_its_own_name_on_a_scale_for_all(show, side):
    record = record_of(_of("<anna>", spot_at(0.25)), _of("<rex>", spot_at(0.75, peak=0.2)))
    sheet = draw_sheet(record, show)
    anna, rex = (_cells(sheet, side, GAP, 1, place)[0] for place in (0, 1))
    assert _hottest(anna) == pytest.approx(0.25, abs=0.08)
    assert _hottest(rex) == pytest.approx(0.75, abs=0.08)
    assert anna.sum(axis=-1).max() > rex.sum(axis=-1).max() + 0.5


@pytest.mark.parametrize("show", SHEETS)
def test_a_name_is_written_in_the_colour_of_its_square_and_the_first_comes_first(monkeypatch, show):
    tokens = ("<rex>", "<anna>", "<ben>")
    record = record_of(*(_of(token, spot_at(0.5), values=_values()) for token in tokens))
    written, write = {}, ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, anchor=None):
        written[text] = fill
        write(self, xy, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    sheet = draw_sheet(record, show)
    assert [written[token] for token in tokens] == [subject_colour(n) for n in range(3)]
    lefts, tops = zip(*(_name_at(sheet, place) for place in range(3)), strict=True)
    assert len(set(lefts if show == "overview" else tops)) == 3
    assert list(lefts) == sorted(lefts)
    assert list(tops) == sorted(tops)


def test_steps_stand_in_their_order():
    record = record_of(*(_of("<anna>", spot_at(0.2 + 0.2 * step), step) for step in (2, 0, 1, 3)))
    cells = _cells(draw_sheet(record, "steps"), SMALL, GAP, 4)
    assert [_hottest(each) for each in cells] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.05)


def test_resolutions_stand_from_fine_to_coarse():
    coarse = spot_at(0.25, grid=(4, 4))
    record = record_of(_of("<anna>", coarse, site=COARSE), _of("<anna>", spot_at(0.75)))
    cells = _cells(draw_sheet(record, "resolutions"), MEDIUM, GAP, 2)
    assert _hottest(cells[0]) == pytest.approx(0.75, abs=0.08)
    assert _hottest(cells[1]) < 0.5


def test_all_subjects_and_their_overlap_stand_behind_the_maps():
    record = record_of(_of("<anna>", spot_at(0.3)), _of("<rex>", spot_at(0.6, peak=0.2)))
    *_, together, overlap = _cells(draw_sheet(record, "overview"), LARGE, 20, 4)
    assert _hottest(overlap) == pytest.approx(0.45, abs=0.05)
    for place, x in enumerate((0.3, 0.6)):
        found = together[together.shape[0] // 2, round(x * together.shape[1])] * 255
        distances = [np.abs(found - subject_colour(each)).sum() for each in (0, 1)]
        assert int(np.argmin(distances)) == place


def test_the_image_lies_under_every_map_the_right_way_round():
    record = record_of(_of("<anna>", spot_at(0.3)), _of("<rex>", spot_at(0.6, peak=0.2)))
    black, half = np.zeros((2, 8, 8, 3), dtype=np.float32)
    half[:, :4] = 1.0
    dark, light = (
        _cells(draw_sheet(record, "overview", 0, each), LARGE, 20, 4) for each in (black, half)
    )
    for before, after in zip(dark, light, strict=True):
        gain = (after - before).mean(axis=(0, 2))
        middle = len(gain) // 2
        assert gain[: middle - 20].mean() > 0.1
        assert abs(gain[middle + 20 :].mean()) < 0.01


def test_the_one_value_of_the_text_stands_right_of_the_values_of_the_pixels():
    sheet = draw_sheet(record_of(_of("<anna>", spot_at(0.5), values=_values())), "values")
    nested, flat = (np.unique(each.reshape(-1, 3), axis=0) for each in _cells(sheet, SMALL, 2, 2))
    assert len(nested) > 100
    assert len(flat) == 1


@pytest.mark.parametrize("show", SHEETS)
def test_a_sheet_of_one_picture_of_a_batch_is_that_of_the_picture_alone(show):
    """But for the title, which says the picture only where there are several."""
    of_picture = [
        _of("<anna>", spot_at(0.25), picture=3, values=_values()),
        _of("<rex>", spot_at(0.75), 1, picture=3, values=_values()),
    ]
    finer = (24, 24)
    of_another = [
        _of(token, spot_at(0.5, 0.9, finer), step, site, 1, _values(finer))
        for token in ("<anna>", "<rex>", "<ben>")
        for step in (0, 1, 2)
        for site in (FINE, COARSE)
    ]
    alone = draw_sheet(record_of(*of_picture), show, 3)
    of_batch = draw_sheet(record_of(*of_picture, *of_another), show, 3)
    below, width = MARGIN + 2 * TITLE, min(alone.shape[1], of_batch.shape[1]) - MARGIN
    assert len(of_batch) == len(alone)
    assert np.array_equal(of_batch[below:, :width], alone[below:, :width])
    assert of_batch.shape != alone.shape or not np.array_equal(of_batch[:below], alone[:below])
