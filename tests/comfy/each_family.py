"""Marks a test to run once for each family of transformers."""

from __future__ import annotations

import pytest
from dit_scene import FAMILIES

EACH = pytest.mark.parametrize("family", FAMILIES)
