"""Which ComfyUI is used, and how something is run inside it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .console import DevError

LAUNCHER = Path(__file__).with_name("launch.py")
FEW_CORES = 4

# What is asked of an installation's Python before it is used.
QUESTIONS = """
import importlib.util, json, sys
has = lambda name: importlib.util.find_spec(name) is not None
print(json.dumps({
    "version": sys.version_info[:2],
    "in_venv": sys.prefix != sys.base_prefix,
    "packages": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))],
    "has_torch": has("torch"),
    "has_venv": has("venv") and has("ensurepip"),
}))
"""


@dataclass(frozen=True)
class Host:
    """A ComfyUI tree, the Python that runs it, and folders put before that Python's packages."""

    root: Path
    python: Path
    overlays: tuple[Path, ...] = ()
    private: bool = False

    @property
    def version(self) -> str:
        file = self.root / "comfyui_version.py"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        found = re.search(r'__version__ = "([^"]+)"', text)
        return found[1] if found else "unknown"

    def with_python(self, python: Path, *overlays: Path) -> "Host":
        return replace(self, python=python, overlays=(*self.overlays, *overlays))

    def command(self, *arguments: str | Path) -> list[str]:
        """`SCRIPT args` or `-m MODULE args` inside this host."""
        return [str(part) for part in (self.python, LAUNCHER, *arguments)]

    def environment(self, pack_root: Path, *, tests: bool = False) -> dict[str, str]:
        env = dict(os.environ)
        # ComfyUI first, and the checkout not at all: its nodes/ would hide ComfyUI's nodes.py.
        checkout = os.path.realpath(pack_root)
        inherited = [
            entry
            for entry in env.get("PYTHONPATH", "").split(os.pathsep)
            if entry and os.path.realpath(entry) != checkout
        ]
        env["PYTHONPATH"] = os.pathsep.join([str(self.root), *map(str, self.overlays), *inherited])
        env["NESTED_ATTENTION_ROOT"] = str(pack_root)
        env["NESTED_ATTENTION_HOST"] = str(self.root)
        env["NESTED_ATTENTION_HOST_VERSION"] = self.version
        # On few cores OpenMP's threads spin while they wait, and starve each other.
        if (os.cpu_count() or 1) <= FEW_CORES:
            env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if tests:
            env.setdefault("OMP_NUM_THREADS", "1")
        return env


def is_comfyui(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("main.py", "nodes.py", "comfy"))


def find_installation(checkout: Path, environ: Mapping[str, str]) -> Path | None:
    """ComfyUI's root as the user has it: COMFYUI_PATH, else the one around this checkout."""
    if environ.get("COMFYUI_PATH"):
        root = Path(environ["COMFYUI_PATH"]).expanduser().absolute()
        if not is_comfyui(root):
            raise DevError(
                f"COMFYUI_PATH is {root}: expected a folder with main.py, nodes.py and comfy/ "
                "there. Set it to ComfyUI's own folder, or unset it to get a private ComfyUI."
            )
        return root
    around = checkout.parent.parent
    if checkout.parent.name == "custom_nodes" and is_comfyui(around):
        return around
    return None


def find_python(root: Path, environ: Mapping[str, str]) -> Path:
    """The Python that this installation runs with."""
    if environ.get("COMFYUI_PYTHON"):
        python = Path(environ["COMFYUI_PYTHON"]).expanduser().absolute()
        if not python.is_file():
            raise DevError(f"COMFYUI_PYTHON is {python}: there is no such file.")
        return python
    candidates = [
        root / venv / executable
        for venv in ("venv", ".venv")
        for executable in ("bin/python", "Scripts/python.exe")
    ]
    candidates.append(root.parent / "python_embeded" / "python.exe")
    return next((path for path in candidates if path.is_file()), Path(sys.executable))


def describe_python(python: Path) -> dict[str, Any]:
    """Version, package folders and abilities of a Python, asked of itself."""
    command = [str(python), "-E", "-c", QUESTIONS]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DevError(f"{python}: does not run as a Python ({error}).") from error
    return json.loads(answer.stdout)


def installed_host(root: Path, environ: Mapping[str, str]) -> Host:
    python = find_python(root, environ)
    if not describe_python(python)["has_torch"]:
        raise DevError(
            f"{root}: its Python seems to be {python}, but that has no torch. "
            "Set COMFYUI_PYTHON to the Python which starts this ComfyUI."
        )
    return Host(root, python)
