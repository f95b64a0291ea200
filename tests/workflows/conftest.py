"""A real ComfyUI server on loopback with this pack and the demo's tiny models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from serving import ROOT, Server, demo, server_module


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    demo.prepare(base)
    encoders = base / "models" / "nested_attention"
    for name in ("person_sdxl.safetensors", "pet_sdxl.safetensors"):
        shutil.copy(encoders / demo.ENCODER_NAME, encoders / name)
    packs = [ROOT / "demo" / "custom_nodes" / "tiny_models"]
    with server_module.ComfyServer(server_module.this_host(), ROOT, base, packs) as running:
        yield Server(running.url, base)
