"""What the server tests share: the demo and its client, and a running server in plain calls."""

from __future__ import annotations

import asyncio
import html
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(os.environ.get("NESTED_ATTENTION_ROOT") or Path(__file__).parents[2])
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def load_file(name: str, path: Path) -> ModuleType:
    """A module of the repository by its path; the repository's root is on no path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "demo"))
client_module = load_file("client", ROOT / "demo" / "client.py")
demo = load_file("demo_run", ROOT / "demo" / "run.py")
server_module = load_file("nested_attention_server", ROOT / "devtools" / "server.py")


class Server:
    """A running server, asked in plain calls."""

    def __init__(self, url: str, base: Path) -> None:
        self.url, self.base = url, base

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        async def ask() -> Any:
            async with client_module.ComfyClient(self.url) as client:
                return await question(client)

        return asyncio.run(ask())

    def get(self, path: str) -> Any:
        return self._ask(lambda client: client.get(path))

    def run(self, prompt: dict[str, Any]) -> Any:
        return self._ask(lambda client: client.run(prompt))

    def pixels(self, image: dict[str, str]) -> np.ndarray:
        """Of a picture that a node says it wrote."""
        file = self.base / image["type"] / image.get("subfolder", "") / image["filename"]
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB"))

    def texts_of(self, prompt: dict[str, Any]) -> dict[str, str]:
        """Runs the prompt; what each node shows at its end, read as the page reads it."""
        shown: dict[str, str] = {}
        self._ask(lambda client: client.run(prompt, said=shown.__setitem__))
        return {node: html.unescape(text) for node, text in shown.items()}
