"""Tests on the real ComfyUI, in this process: CPU, a base directory of their own, the pack loaded as
ComfyUI loads it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_HOST = os.environ.get("NESTED_ATTENTION_HOST") or os.environ.get("COMFYUI_PATH")
if not _HOST:
    pytest.exit("tests/comfy need a ComfyUI: run them with `python dev.py test`.", returncode=4)

# The host's folder comes first: in front of it our `nodes/` would stand for ComfyUI's `nodes.py`.
sys.path.insert(0, _HOST)
sys.path.append(str(_HERE))
sys.path.append(str(_HERE.parents[1] / "demo" / "custom_nodes" / "tiny_models"))

_BASE = tempfile.TemporaryDirectory(prefix="nested-attention-tests-", ignore_cleanup_errors=True)
Path(_BASE.name, "custom_nodes").mkdir()


def _start_host() -> None:
    """ComfyUI reads its arguments from the command line when it is first imported."""
    arguments = sys.argv
    sys.argv = ["comfyui", "--cpu", "--base-directory", _BASE.name]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments


_start_host()
pytest.register_assert_rewrite("composition")
import scenes  # noqa: E402
import text_encoders  # noqa: E402  (they need the host)
import two_subjects  # noqa: E402


@pytest.fixture(params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    """Both families of UNet."""
    return request.param


@pytest.fixture
def scene(family: str) -> scenes.Scene:
    """A tiny checkpoint of each family with an encoder that fits it."""
    return scenes.make_scene(family)


@pytest.fixture
def sd15() -> scenes.Scene:
    """A tiny SD1.5 with an encoder that fits it."""
    return scenes.make_scene("sd15")


@pytest.fixture
def sdxl() -> scenes.Scene:
    """A tiny SDXL with an encoder that fits it."""
    return scenes.make_scene("sdxl")


@pytest.fixture
def two(family: str) -> two_subjects.Two:
    """A checkpoint of each family with two subjects, shared by all tests."""
    return two_subjects.two_of(family)


@pytest.fixture
def clips(family: str) -> text_encoders.Clips:
    """Text encoders of each family without and with bound tokens, shared by all tests."""
    return text_encoders.clips_of(family)


@pytest.fixture
def sdxl_clips() -> text_encoders.Clips:
    """The same of SDXL alone."""
    return text_encoders.clips_of("sdxl")


@pytest.fixture(autouse=True)
def _as_nodes_run():
    """ComfyUI executes nodes in inference mode."""
    import torch

    with torch.inference_mode():
        yield
