"""The pack as ComfyUI loaded it: its nodes by id and its modules by name."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nodes as host_nodes

ROOT = Path(os.environ.get("NESTED_ATTENTION_ROOT") or Path(__file__).parents[2])


def _load() -> str:
    before = set(sys.modules)
    assert asyncio.run(host_nodes.load_custom_node(str(ROOT))), "the pack did not load"
    (name,) = (
        name
        for name, module in sys.modules.items()
        if name not in before and getattr(module, "__file__", None) == str(ROOT / "__init__.py")
    )
    return name


NAME = _load()


def module(path: str) -> ModuleType:
    """`nested_core.attention`, `nodes.bridge.model.patch`, ... as the pack itself sees them."""
    return sys.modules[f"{NAME}.{path}"]


def node(name: str) -> Any:
    """A node class by its id without the prefix, such as `Apply`."""
    return host_nodes.NODE_CLASS_MAPPINGS[f"NestedAttention_{name}"]


def run(name: str, **inputs: Any) -> Any:
    """The node's output; a tuple where there are several."""
    result = node(name).execute(**inputs).result
    return result[0] if result is not None and len(result) == 1 else result


_LOADED_EXTRAS: set[str] = set()


def host_node(name: str, extra: str | None = None) -> Any:
    """A class of ComfyUI's own nodes; `extra` names the file in `comfy_extras` that defines it."""
    if extra is not None and extra not in _LOADED_EXTRAS:
        path = Path(host_nodes.__file__).parent / "comfy_extras" / f"{extra}.py"
        assert asyncio.run(host_nodes.load_custom_node(str(path), module_parent="comfy_extras"))
        _LOADED_EXTRAS.add(extra)
    return host_nodes.NODE_CLASS_MAPPINGS[name]


def run_host(name: str, extra: str | None = None, **inputs: Any) -> Any:
    """The output of one of ComfyUI's own nodes, old or new schema."""
    cls = host_node(name, extra)
    if hasattr(cls, "define_schema"):
        output = cls.execute(**inputs)
        result = getattr(output, "result", output)  # some new nodes still return a tuple
    else:
        result = getattr(cls(), cls.FUNCTION)(**inputs)
    return result[0] if len(result) == 1 else result
