"""The maps of a record as layers, to be laid over the finished picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..shapes import Float
from .colours import Rgb
from .panels import colour_of, tokens_of
from .record import MapRecord, at_peak

_MOST_COVER = 0.85  # at the map's peak: the picture shows through


@dataclass(frozen=True, eq=False)
class Overlay:
    """Where one subject acts in one picture.

    Attributes:
        picture: index in the batch.
        token: as the user writes it, `<anna>`.
        colour: the subject's own, the same as in the sheets.
        cover: 0 where the layer is transparent; on the finest grid that was recorded.
    """

    picture: int
    token: str
    colour: Rgb
    cover: Float[np.ndarray, "height width"]


def overlays(record: MapRecord) -> Iterator[Overlay]:
    """A layer for each picture and each subject in it, each map by its own peak; of videos, none."""
    if record.num_frames > 1:
        return  # nobody shows them frame by frame
    for picture in record.pictures:
        for token in tokens_of(record, picture):
            cover = _MOST_COVER * at_peak(record.mean(picture, token)).numpy()
            yield Overlay(picture, token, colour_of(record, token), cover)
