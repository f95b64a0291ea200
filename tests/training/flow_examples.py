"""The example of each family in `docs/training.md`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from nested_core.training.config import parse_arguments

_DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
_BLOCK = re.compile(r"^```toml\n# (\w+)\.toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)

EXAMPLES: dict[str, str] = dict(_BLOCK.findall(_DOCUMENT.read_text(encoding="utf-8")))


def example(family: str, folder: Path) -> dict[str, Any]:
    """The settings, as the command reads them; none where Python reads no TOML."""
    if sys.version_info < (3, 11):
        return {}
    file = folder / f"{family}.toml"
    file.write_text(EXAMPLES[family], encoding="utf-8")
    config, _ = parse_arguments(["--config", str(file)])
    return vars(config)
