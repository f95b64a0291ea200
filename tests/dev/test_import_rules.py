"""Who may import what: this checkout keeps the rules, and a line that breaks one is found."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

spec = importlib.util.spec_from_file_location(
    "nested_attention_import_rules", ROOT / "devtools" / "import_rules.py"
)
assert spec is not None
assert spec.loader is not None
rules = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = rules
spec.loader.exec_module(rules)

MODULES = (
    "nested_core/attention",
    "nested_core/checkpoint/__init__",
    "nested_core/checkpoint/hashes",
    "nested_core/maps/canvas",
    "nested_core/training/loss",
    "nodes/apply",
    "nodes/bridge/paths",
    "nodes/bridge/model/patch",
    "lab/report/page",
    "demo/tiny_world/world",
)

# A line in a module, and what is said of it. Each rule stands here at least once.
FORBIDDEN = [
    ("nested_core/attention", "import comfy.utils", "neither ComfyUI nor"),
    ("nested_core/maps/canvas", "from folder_paths import base_path", "neither ComfyUI nor"),
    ("nested_core/training/loss", "import nodes", "neither ComfyUI nor"),
    ("nested_core/attention", "from ..nodes import apply", "neither ComfyUI nor"),
    ("nested_core/attention", "from .checkpoint.hashes import hashed", "neither files nor drawing"),
    ("nested_core/attention", "from . import checkpoint", "neither files nor drawing"),
    ("nested_core/attention", "from .maps.canvas import draw", "neither files nor drawing"),
    ("nested_core/families/unet", "from ..checkpoint import hashes", "knows of families"),
    ("nested_core/families/unet", "import comfy.ldm", "neither ComfyUI nor"),
    ("nested_core/checkpoint/hashes", "from ..training.loss import loss", "files know the method"),
    ("nested_core/maps/canvas", "from ..checkpoint import hashes", "drawing knows the method"),
    ("nested_core/training/loss", "import diffusers", "one module knows diffusers"),
    ("nodes/apply", "from nested_core.attention import bound", "import it relatively"),
    ("nodes/apply", "import comfy.sd", "only nodes/bridge knows"),
    ("nodes/apply", "def run():\n    from server import PromptServer", "only nodes/bridge knows"),
    ("nodes/apply", "from ..nested_core.training import loss", "nodes run without training"),
    ("nodes/bridge/paths", "from ...demo.tiny_world import world", "nodes run without training"),
    ("nodes/bridge/paths", "from ..apply import Apply", "the bridge does not know the nodes"),
    ("nodes/bridge/text/clip", "from ..model.patch import bind", "text is read before any model"),
    ("nodes/bridge/families/unet", "from ..model.patch import bind", "not the other way round"),
    ("lab/report/page", "from ...nodes.apply import Apply", "they use the nodes as users do"),
    ("demo/run", "from lab.report import page", "the demo runs without the evaluations"),
    ("lab/report/page", "import comfy.sample", "are made without ComfyUI"),
    ("tests/core/test_attention", "import folder_paths", "only tests/comfy runs inside"),
    ("devtools/host", "import comfy.cli_args", "only tests/comfy runs inside"),
]

ALLOWED = [
    ("nodes/apply", "from comfy_api.latest import io"),
    ("nodes/apply", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import comfy.sd"),
    ("nodes/apply", "from ..nested_core import attention"),
    ("nodes/bridge/paths", "import folder_paths"),
    ("nested_core/training/loss", "from ..checkpoint import hashes"),
    ("nested_core/training/diffusers_model", "import diffusers"),
    ("lab/training/host", "import comfy.ops\nfrom tiny_world import world"),
    ("tests/comfy/test_laws", "import nodes"),
]

CIRCLES = [
    {"lab/report/page": "from . import table", "lab/report/table": "from .page import Page"},
    {
        "nodes/sockets": "def late():\n    from .bridge import notices",
        "nodes/bridge/notices": "from ..sockets import CATEGORY",
    },
    {
        # One of the tiny world's own modules, by its relative and by its own name.
        "demo/tiny_world/sheet": "from .prompts import Request",
        "demo/tiny_world/prompts": "from tiny_world.sheet import Row",
    },
    {
        # By way of a package, which is run before its module.
        "nested_core/training/data/__init__": "from ..samples import Samples",
        "nested_core/training/data/folder": "",
        "nested_core/training/samples": "from .data.folder import Folder",
    },
]


def checkout(folder: Path, lines: dict[str, str]) -> Path:
    for module, line in {**dict.fromkeys(MODULES, ""), **lines}.items():
        file = folder / f"{module}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line, encoding="utf-8")
    return folder


def test_this_checkout_keeps_the_rules() -> None:
    assert rules.problems(ROOT) == []


def test_the_files_of_this_checkout_are_read() -> None:
    read = {each.module for each in rules.all_imports(ROOT)}
    folders = {module.partition("/")[0] for module in read}
    assert folders == {*rules.FOLDERS, "dev"}


@pytest.mark.parametrize("module, line, why", FORBIDDEN)
def test_a_line_that_breaks_a_rule_is_found(tmp_path, module, line, why) -> None:
    said = rules.problems(checkout(tmp_path, {module: line}))
    told = [sentence for sentence in said if why in sentence]
    assert len(told) == 1, said
    assert told[0].startswith(f"{module}.py:{line.count(chr(10)) + 1} imports ")


def test_each_rule_was_seen_to_be_broken() -> None:
    unseen = [rule.why for rule in rules.RULES if not any(why in rule.why for *_, why in FORBIDDEN)]
    assert unseen == []


@pytest.mark.parametrize("module, line", ALLOWED)
def test_other_lines_are_free(tmp_path, module, line) -> None:
    assert rules.problems(checkout(tmp_path, {module: line})) == []


@pytest.mark.parametrize("lines", CIRCLES, ids=lambda lines: next(iter(lines)))
def test_circles_are_found(tmp_path, lines) -> None:
    said = [each for each in rules.problems(checkout(tmp_path, lines)) if "circle" in each]
    assert len(said) == 1
    assert all(module in said[0] for module in list(lines)[:1])
