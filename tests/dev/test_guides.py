"""What the guides for developers name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where the names of a guide are looked up.
GUIDES = {
    "tests/README.md": ["tests"],
    "docs/compatibility.md": ["tests/comfy"],
    "CONTRIBUTING.md": ["nested_core", "nested_core/training", "nodes/bridge", "demo", "lab"],
}
NAMED = re.compile(r"`([\w./]+(?:\.py|/))`")


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_and_folder_that_a_guide_names_is_there(guide: str) -> None:
    text = (ROOT / guide).read_text(encoding="utf-8")
    names = NAMED.findall(text)
    assert len(names) > 5
    folders = [ROOT, *(ROOT / folder for folder in GUIDES[guide])]
    assert [n for n in names if not any((folder / n).exists() for folder in folders)] == []
