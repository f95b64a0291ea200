"""What nested attention did while a picture was drawn: recorded, summed up, and drawn as sheets."""

from __future__ import annotations

from .overlays import Overlay, overlays
from .pictures import SHEETS, draw_sheet, live_view
from .record import MapError, MapRecord, RecordPlan, SiteMap, StepSelector, parse_steps
from .values import ValuePicture, value_picture

__all__ = [
    "SHEETS",
    "MapError",
    "MapRecord",
    "Overlay",
    "RecordPlan",
    "SiteMap",
    "StepSelector",
    "ValuePicture",
    "draw_sheet",
    "live_view",
    "overlays",
    "parse_steps",
    "value_picture",
]
