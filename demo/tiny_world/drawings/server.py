"""A ComfyUI of its own for the pictures that are drawn by models. Imported with `demo` on the path."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from run import prepare

from tiny_world.world import Picture

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def tiny_world_server(photographs: Mapping[str, Picture]) -> Iterator[str]:
    """Its address. It sees this pack, the demo's packs, the encoder and these photographs."""
    server = module_at("nested_attention_server", ROOT / "devtools" / "server.py")
    packs = sorted(path.parent for path in (ROOT / "demo" / "custom_nodes").glob("*/__init__.py"))
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), photographs)
        with server.ComfyServer(server.this_host(), ROOT, Path(folder), packs) as running:
            yield running.url


def module_at(name: str, path: Path) -> ModuleType:
    """A module by its path: its folder is on no path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
