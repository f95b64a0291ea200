"""Small records of maps to draw and to sum up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensors import random

from nested_core.families.unet_sites import AttentionSite
from nested_core.maps import MapRecord, RecordPlan, SiteMap, ValuePicture

FINE, COARSE = AttentionSite("output", 3, 1), AttentionSite("middle", 0, 0)


def record_of(*maps: SiteMap, plan: RecordPlan | None = None) -> MapRecord:
    """Of a sampling in four steps."""
    record = MapRecord(plan or RecordPlan())
    record.begin(4)
    for each in maps:
        record.add(each)
    return record


def spot_at(
    x: float, peak: float = 0.4, grid: tuple[int, int] = (16, 16), spread: float = 0.01
) -> torch.Tensor:
    """A round spot whose centre lies at the share x of the width."""
    rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
    distance = (rows[:, None] - 0.5) ** 2 + (columns[None] - x) ** 2
    return (peak * torch.exp(-distance / spread)).half()


def random_values(
    grid: tuple[int, int] = (16, 16), text: Sequence[float] = (0.0, 0.0, 0.0)
) -> ValuePicture:
    return ValuePicture(random(*grid, 3).half(), torch.tensor(text).half(), 0.87)
