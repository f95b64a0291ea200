"""Makes `nested_core` importable from this checkout, annotated shapes checked at run time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

_FOLDER = Path(__file__).parents[1] / "nested_core"


def _import_nested_core() -> None:
    """Loads the package from its folder: with the root on sys.path, `nodes/` hides ComfyUI's."""
    # The hook sees the submodules; the package's own file only holds a docstring.
    install_import_hook("nested_core", "beartype.beartype")
    spec = importlib.util.spec_from_file_location(
        "nested_core", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["nested_core"] = package
    spec.loader.exec_module(package)


if "nested_core" not in sys.modules:
    _import_nested_core()

# How fast a busy machine draws examples says nothing about the code.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
