"""The sheet of the query-dependent values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..shapes import Float
from .canvas import beside, framed, in_rows, sheet, stack, text_line
from .colours import SOFT, kept_in_range
from .panels import SMALL, evenly, map_size, of_picture, subject_name
from .record import MapError, MapRecord, SiteMap
from .values import ValuePicture

_COLUMNS = 4
_MAX_SITES = 16  # per subject, as long as they make no more than
_MAX_PICTURES = 48

# A third component that hardly varies beside the first must not be stretched into a loud colour.
_LEAST_RANGE = 0.1


def values(
    record: MapRecord, picture: int, image: Float[np.ndarray, "height width 3"] | None
) -> Float[np.ndarray, "sheet_height sheet_width 3"]:
    """For each subject and site the value that each pixel gets, beside the text token's own.

    Raises:
        MapError: no values were recorded.
    """
    maps_of = {token: record.values(picture, token) for token in record.tokens}
    maps_of = {token: maps for token, maps in maps_of.items() if maps}
    if not maps_of:
        raise MapError(
            "Show Maps: the record holds no values of this picture. Switch 'values' on in Record "
            "Maps; they are taken at the last of its steps, so each subject must act there "
            "(start_percent, end_percent)."
        )
    per_subject = max(_COLUMNS, min(_MAX_SITES, _MAX_PICTURES // len(maps_of)))
    size = map_size(record.finest_grid(picture), SMALL)
    body = [
        stack(
            [
                subject_name(record, token, _values_note(maps, per_subject), 4 * size[0]),
                in_rows(
                    [_value_panel(each, size) for each in evenly(maps, per_subject)],
                    _COLUMNS,
                    24,
                    16,
                ),
            ],
            gap=8,
        )
        for token, maps in maps_of.items()
    ]
    notes = [
        "Left: the query-dependent value of the subject's token in one layer, one colour per pixel. "
        "Right: the same layer without nested attention, where every pixel gets one value.",
        "Red, green and blue are the first three principal components of the left picture, each over "
        "its own range; % is the share of its variation that they show.",
    ]
    title = "What each pixel is told of the subject" + of_picture(record, picture)
    return sheet(title, notes, body[:-1], body[-1])


def _values_note(maps: Sequence[SiteMap], most: int) -> str:
    shown = min(len(maps), most)
    of = "" if shown == len(maps) else f" of {len(maps)}"
    return f"{shown}{of} sites"


def _value_panel(site_map: SiteMap, size: tuple[int, int]) -> Image.Image:
    assert site_map.values is not None
    nested, flat = value_colours(site_map.values)
    pair = beside([framed(nested, size, smooth=False), framed(flat, size, smooth=False)], gap=2)
    share = f"{100 * site_map.values.explained:.0f} %"
    caption = f"{site_map.site.text} · step {site_map.step} · {share}"
    return stack([pair, text_line(caption, colour=SOFT, width=pair.width)], gap=4)


def value_colours(
    picture: ValuePicture,
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "1 1 3"]]:
    """The picture of the values and the one colour without nested attention, both in [0, 1].

    Each component over its own range; the flat colour is kept at the edge where it lies outside.
    """
    points = picture.colours.float()
    low, high = np.quantile(points.flatten(0, 1).numpy(), [0.01, 0.99], axis=0)
    spread = high - low
    centre = (low + high) / 2
    widest = float(spread.max())
    spread = np.maximum(spread, _LEAST_RANGE * widest) if widest > 0 else np.ones(3)

    def colours(coordinates: Float[np.ndarray, "*places 3"]) -> Float[np.ndarray, "*places 3"]:
        shares = (coordinates - centre) / spread + 0.5
        return kept_in_range(shares).astype(np.float32)

    return colours(points.numpy()), colours(picture.flat.float().numpy())[None, None]
