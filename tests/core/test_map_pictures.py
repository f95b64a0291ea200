"""The sheets: what is written and drawn in them, for any number of subjects and any shape."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from map_records import random_values, spot_at
from PIL import ImageDraw

from nested_core.families.unet_sites import AttentionSite
from nested_core.maps import (
    SHEETS,
    MapError,
    MapRecord,
    RecordPlan,
    SiteMap,
    ValuePicture,
    draw_sheet,
    live_view,
    overlays,
)
from nested_core.maps import canvas as canvas_module
from nested_core.maps.canvas import text_line
from nested_core.maps.colours import subject_colour

_FINE = [AttentionSite("output", 3, index) for index in range(2)]
_COARSE = [AttentionSite("middle", 0, index) for index in range(3)]


def _spot(grid: tuple[int, int], x: float, peak: float) -> torch.Tensor:
    return spot_at(x, peak, grid, spread=0.02)


def _record(tokens=("<anna>", "<rex>"), grid=(8, 8), steps=(0, 1), pictures=(0,), values=True):
    """Every subject a spot, from left to right in the order of the tokens, of peaks 0.4, 0.2, ..."""
    record = MapRecord(RecordPlan())
    record.begin(max(steps) + 1)
    half = (grid[0] // 2, grid[1] // 2)
    for place, token in enumerate(tokens):
        x, peak = (place + 0.5) / len(tokens), 0.4 / (place + 1)
        for picture in pictures:
            for step in steps:
                for site in [*_FINE, *_COARSE]:
                    own = grid if site in _FINE else half
                    made = random_values(own) if values and step == max(steps) else None
                    spot = _spot(own, x, peak)
                    record.add(SiteMap(step, max(steps) + 1, site, picture, token, spot, made))
    return record


class _Pen:
    """Everything that was written."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sizes: list[float] = []
        self.outside: list[str] = []

    def __contains__(self, text: str) -> bool:
        return any(text in each for each in self.texts)


@pytest.fixture
def pen(monkeypatch) -> _Pen:
    seen = _Pen()
    write = ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, anchor=None):
        left, top, right, bottom = self.textbbox(xy, text, font, anchor)
        width, height = self.im.size
        seen.texts.append(text)
        seen.sizes.append(font.size)
        if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
            seen.outside.append(text)
        write(self, xy, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


@pytest.mark.parametrize("show", SHEETS)
@pytest.mark.parametrize("grid", [(6, 20), (20, 6)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_sheet_is_an_image_with_readable_text_inside(pen, show, grid, count):
    tokens = [f"<subject number {place}>" for place in range(count)]
    sheet = draw_sheet(_record(tokens, grid), show)
    assert sheet.dtype == np.float32
    assert sheet.shape[2] == 3
    assert 0 <= sheet.min() < 0.3
    assert 0.9 < sheet.max() <= 1
    assert sheet.shape[1] <= 1640 + 64
    assert min(pen.sizes) >= 14
    assert not pen.outside
    for token in tokens:
        # A narrow panel shortens the name.
        assert any(text == token or token.startswith(text[:8]) for text in pen.texts)
    margin = sheet[:30], sheet[-30:], sheet[:, :30], sheet[:, -30:]
    assert all(np.ptp(each.reshape(-1, 3), axis=0).max() == 0 for each in margin)


def test_overview_says_names_numbers_extent_and_scale(pen):
    record = _record(values=False)
    draw_sheet(record, "overview")
    for text in ("<anna>", "<rex>", "all subjects", "overlap", "5 sites", "2 steps of 2 (0-1"):
        assert text in pen
    peaks = [float(found[1]) for text in pen.texts if (found := re.match(r"peak (\S+) ·", text))]
    expected = [float(record.mean(0, token).max()) for token in ("<anna>", "<rex>")]
    assert peaks == pytest.approx(expected, rel=0.05)
    means = [float(found[1]) for text in pen.texts if (found := re.search(r"mean (\S+)$", text))]
    expected = [float(record.mean(0, token).mean()) for token in ("<anna>", "<rex>")]
    assert means == pytest.approx(expected, rel=0.05)
    assert "0.5" in pen.texts  # the middle of the overlap's scale


def test_the_overlap_is_said_as_its_number(pen):
    record = MapRecord(RecordPlan())
    record.begin(1)
    for token, row in (("<anna>", [0.5, 0.25]), ("<rex>", [0.0, 0.1])):
        record.add(SiteMap(0, 1, _FINE[0], 0, token, torch.tensor([row]).half()))
    draw_sheet(record, "overview")
    assert "0.25 (0 apart, 1 alike)" in pen.texts


@pytest.mark.parametrize("show", ["overview", "resolutions", "steps"])
def test_a_scale_ends_at_the_largest_attention(pen, show):
    record = MapRecord(RecordPlan())
    record.begin(1)
    record.add(SiteMap(0, 1, _FINE[0], 0, "<anna>", torch.full((8, 8), 0.25).half()))
    draw_sheet(record, show)
    assert pen.texts.count("0.25") == 1
    assert pen.texts.count("0.12") == 1
    assert "1" not in pen.texts


def test_one_subject_has_no_overlap(pen):
    draw_sheet(_record(["<anna>"]), "overview")
    assert "overlap" not in pen
    assert "all subjects" not in pen


def test_resolutions_say_width_height_and_sites(pen):
    draw_sheet(_record(grid=(8, 16)), "resolutions")
    assert pen.texts.count("16 x 8 · 2 sites") == 2
    assert pen.texts.count("8 x 4 · 3 sites") == 2


def test_steps_are_ten_at_most_with_the_first_and_the_last(pen):
    sheet = draw_sheet(_record(["<anna>"], (6, 20), steps=range(5, 40)), "steps")
    assert sheet.shape[1] <= 1640 + 64
    shown = [int(text.removeprefix("step ")) for text in pen.texts if text.startswith("step ")]
    assert len(shown) == 10
    assert (shown[0], shown[-1]) == (5, 39)
    assert max(np.diff(shown)) - min(np.diff(shown)) <= 1


def test_values_say_site_step_and_share(pen):
    draw_sheet(_record(["<anna>"]), "values")
    shown = [text for text in pen.texts if "87 %" in text]
    assert shown == [f"{site} · step 1 · 87 %" for site in ("m0.0", "m0.1", "m0.2", "u3.0", "u3.1")]
    assert "5 sites" in pen.texts


@pytest.mark.parametrize("count, expected", [(1, 16), (2, 32), (8, 48)])
def test_values_of_many_sites_are_chosen_evenly(pen, count, expected):
    record = _record([f"<{place}>" for place in range(count)], values=False)
    for place in range(count):
        for index in range(70):
            site = AttentionSite("output", 0, index)
            made = random_values((8, 8))
            record.add(SiteMap(1, 2, site, 0, f"<{place}>", _spot((8, 8), 0.5, 0.1), made))
    draw_sheet(record, "values")
    assert sum("87 %" in text for text in pen.texts) == expected
    assert pen.texts.count(f"{expected // count} of 70 sites") == count
    assert "u0.0 " in pen
    assert "u0.69 " in pen


@pytest.mark.parametrize("show", SHEETS)
def test_a_picture_is_named_where_there_are_several(pen, show):
    record = _record(pictures=(0, 3))
    draw_sheet(record, show, 3)
    assert " · picture 3" in pen
    with pytest.raises(MapError, match=r"no maps of picture 1 were recorded, only of 0, 3\."):
        draw_sheet(record, show, 1)
    pen.texts.clear()
    draw_sheet(_record(), show)
    assert "picture 0" not in pen


@pytest.mark.parametrize(
    "steps, text",
    [
        ([0, 1, 2], "5 sites (m0.0-2 u3.0-1) and 3 steps of 3 (0-2; the first is 0)."),
        ([3], "and 1 step of 4 (3; the first is 0)."),
        ([1, 4], "and 2 steps of 5 (1, 4; the first is 0)."),
        (range(0, 13, 2), "and 7 steps of 13 (0, 2, ... 12; the first is 0)."),
    ],
)
def test_a_sheet_says_what_was_averaged(pen, steps, text):
    draw_sheet(_record(["<anna>"], steps=steps, values=False), "overview")
    assert text in " ".join(pen.texts)


def test_a_record_without_values_says_how_to_get_them():
    with pytest.raises(MapError, match=r"holds no values.*Switch 'values' on"):
        draw_sheet(_record(values=False), "values")


def test_an_empty_record_is_an_error():
    with pytest.raises(MapError, match="nothing was sampled"):
        draw_sheet(MapRecord(RecordPlan()), "overview")


@pytest.mark.parametrize("show", ["overview", "resolutions", "steps"])
def test_the_image_lies_under_the_maps(show):
    record = _record()
    black, white = (np.full((10, 20, 3), light, dtype=np.float32) for light in (0, 1))
    plain, dark, light = (draw_sheet(record, show, 0, each) for each in (None, black, white))
    assert plain.shape == dark.shape == light.shape
    assert light.mean() > dark.mean() + 0.02
    assert not np.array_equal(plain, dark)


def test_maps_without_any_attention_are_drawn(pen):
    record = MapRecord(RecordPlan())
    record.begin(1)
    for token in ("<anna>", "<rex>"):
        zeros = torch.zeros(4, 4).half()
        nothing = ValuePicture(torch.zeros(4, 4, 3).half(), torch.zeros(3).half(), 0.0)
        record.add(SiteMap(0, 1, _FINE[0], 0, token, zeros, nothing))
    for show in SHEETS:
        assert np.isfinite(draw_sheet(record, show)).all()
    assert pen.texts.count("peak 0 · mean 0") == 2


def test_a_hot_pixel_does_not_darken_the_rest(pen):
    spot = _spot((40, 40), 0.5, 0.3)
    spot[0, 0] = 1.0
    record = MapRecord(RecordPlan())
    record.begin(1)
    record.add(SiteMap(0, 1, _FINE[0], 0, "<anna>", spot))
    draw_sheet(record, "overview")
    top = next(text for text in pen.texts if text.endswith(" and more"))
    assert float(top.split()[0]) == pytest.approx(0.3, abs=0.01)


def test_a_subject_of_few_pixels_still_has_a_scale(pen):
    few = torch.zeros(40, 40)
    few[20, 20] = 0.4
    record = MapRecord(RecordPlan())
    record.begin(1)
    record.add(SiteMap(0, 1, _FINE[0], 0, "<anna>", few.half()))
    draw_sheet(record, "overview")
    assert "0.4" in pen.texts
    assert " and more" not in pen


def test_a_subject_keeps_its_colour_in_a_picture_without_the_others():
    record = _record(["<anna>"], pictures=(0,))
    for token in ("<anna>", "<rex>"):
        alone = 0 if token == "<anna>" else 1
        record.add(SiteMap(0, 2, _FINE[0], alone, token, _spot((8, 8), 0.5, 0.2)))
    view = live_view(record, picture=1)
    hottest = view.reshape(-1, 3)[view.sum(axis=-1).argmax()]
    distances = [np.abs(hottest * 255 - subject_colour(place)).sum() for place in range(8)]
    assert int(np.argmin(distances)) == 1


def test_the_live_view_shows_each_subject_where_it_acts():
    view = live_view(_record(grid=(8, 16), values=False))
    assert view.shape == (8, 16, 3)
    for column, place in ((4, 0), (11, 1)):
        distance = [np.abs(view[4, column] * 255 - subject_colour(each)).sum() for each in (0, 1)]
        assert int(np.argmin(distance)) == place
    assert view[0, 0].max() < 0.3


def test_the_live_view_of_a_step_is_of_that_step():
    record = _record(["<anna>"], grid=(8, 16), steps=(0,), values=False)
    for site in _FINE:
        record.add(SiteMap(3, 4, site, 0, "<anna>", _spot((8, 16), 0.9, 0.3)))
    early, late = (live_view(record, step=step).sum(axis=(0, 2)) for step in (0, 3))
    assert early.argmax() in (7, 8)
    assert late.argmax() == 14
    assert not live_view(record, step=2).any()


def test_the_live_view_over_an_image_has_the_shape_of_the_maps():
    image = np.zeros((100, 300, 3), dtype=np.float32)
    height, width = live_view(_record(grid=(8, 16)), image=image).shape[:2]
    assert width / height == pytest.approx(2, rel=0.02)
    assert width > 400


def test_long_names_are_cut_short(pen):
    line = text_line("<a name that is much too long>", width=100)
    assert line.width <= 102
    assert pen.texts[0].startswith("<a name")
    assert pen.texts[0].endswith("...")


def test_letters_without_a_font_become_code_points(pen, monkeypatch):
    monkeypatch.setattr(canvas_module, "_OTHER_FONTS", ("no such font.ttf",))
    text_line("<安娜>")
    text_line("<anna>")
    assert pen.texts == ["<\\u5b89\\u5a1c>", "<anna>"]


def test_a_layer_covers_its_picture_where_its_subject_acts():
    layers = list(overlays(_record(grid=(16, 16), pictures=(0, 2))))
    assert [(each.picture, each.token) for each in layers] == [
        (0, "<anna>"),
        (0, "<rex>"),
        (2, "<anna>"),
        (2, "<rex>"),
    ]
    anna, rex = layers[:2]
    assert (anna.colour, rex.colour) == (subject_colour(0), subject_colour(1))
    # The spots' centres lie at a quarter and at three quarters of the width; each by its own peak.
    assert anna.cover.max() == pytest.approx(rex.cover.max()) == pytest.approx(0.85)
    assert anna.cover[8, 4] > 0.8 > 0.1 > anna.cover[8, 12]
    assert rex.cover[8, 12] > 0.8 > 0.1 > rex.cover[8, 4]
