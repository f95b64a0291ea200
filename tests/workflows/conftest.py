"""A real ComfyUI server on loopback with this pack, tiny random models and the tiny world."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import tiny_graphs
from serving import ROOT, Server, server_module


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    tiny_graphs.prepare(base)
    folders = (ROOT / "demo" / "custom_nodes", ROOT / "tests" / "comfy" / "custom_nodes")
    packs = sorted(path.parent for folder in folders for path in folder.glob("*/__init__.py"))
    with server_module.ComfyServer(server_module.this_host(), ROOT, base, packs) as running:
        yield Server(running.url, base)
