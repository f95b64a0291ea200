"""Who may import what, read from the source. `dev.py lint` says every line that breaks a rule.

A module of this checkout is written as its path, `nodes/bridge/vision`, and any other module by its
name, `comfy.utils`. So `nodes/*` is ours and `nodes` is ComfyUI's. Imports for annotations alone,
under `TYPE_CHECKING`, are free. The usual tool, import-linter, does not see `from ..nested_core` in
`nodes/`, which steps out of what is the topmost package for it.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

# Patterns are a shell's, several with spaces between them; * crosses folders.
HOST = "comfy* folder_paths server nodes execution node_helpers latent_preview"
APART = "nested_core/checkpoint/* nested_core/maps/* nested_core/training/*"
USERS = "nodes/* lab/* demo/* tests/*"


class Rule(NamedTuple):
    """What the modules of some folders never import."""

    where: str
    never: str
    why: str
    except_in: str = ""
    but: str = ""


RULES = (
    Rule("nested_core/*", f"{HOST} {USERS}", "nested_core knows neither ComfyUI nor its own users"),
    Rule(
        "nested_core/*",
        APART,
        "the method, and what it knows of families, knows neither files nor drawing nor training",
        except_in=f"{APART} nested_core/__main__",
    ),
    Rule(
        "nested_core/checkpoint/*",
        APART,
        "files know the method alone",
        but="nested_core/checkpoint/*",
    ),
    Rule("nested_core/maps/*", APART, "drawing knows the method alone", but="nested_core/maps/*"),
    Rule(
        "nested_core/*",
        "diffusers* transformers*",
        "one module knows diffusers",
        except_in="nested_core/training/diffusers_model",
    ),
    Rule(
        "nested_core/* nodes/*",
        "nested_core nested_core.*",
        "ComfyUI loads the pack under a name of its own: import it relatively",
    ),
    Rule(
        "nodes/*",
        HOST,
        "only nodes/bridge knows ComfyUI's insides; nodes know comfy_api, for their schemas",
        except_in="nodes/bridge/*",
        but="comfy_api*",
    ),
    Rule(
        "nodes/*",
        "nested_core/training/* lab/* demo/* tests/*",
        "nodes run without training, evaluations and the demo",
    ),
    Rule("nodes/bridge/*", "nodes/*", "the bridge does not know the nodes", but="nodes/bridge/*"),
    Rule("nodes/bridge/text/*", "nodes/bridge/model/*", "text is read before any model runs"),
    Rule(
        "nodes/bridge/families/*",
        "nodes/bridge/model/* nodes/bridge/text/*",
        "the way through a call knows families, and not the other way round",
    ),
    Rule("lab/* demo/*", "nodes/*", "they use the nodes as users do, through ComfyUI"),
    Rule("demo/*", "lab/*", "the demo runs without the evaluations"),
    Rule(
        "lab/measures/* lab/report/* lab/subjects/*",
        HOST,
        "figures and pages are made without ComfyUI",
    ),
    Rule(
        "tests/* devtools/* dev",
        HOST,
        "only tests/comfy runs inside ComfyUI",
        except_in="tests/comfy/*",
    ),
)

FOLDERS = ("nested_core", "nodes", "lab", "demo", "tests", "devtools")
# No circle of imports in and between them.
WITHOUT_CIRCLES = "nested_core/* nodes/* lab/* demo/*"
# What scripts find by its own name, and the folder that holds it.
BY_NAME = {"nested_core": ".", "lab": ".", "tiny_world": "demo", "client": "demo"}
USE_NAMES = "lab/* demo/* tests/*"


class Import(NamedTuple):
    """One import in one line of a module."""

    module: str
    line: int
    target: str


def problems(root: Path) -> list[str]:
    """A sentence for each import that breaks a rule, and one for the first circle found."""
    imports = list(all_imports(root))
    broken = [
        f"{module}.py:{line} imports {target}: {rule.why}"
        for module, line, target in imports
        for rule in RULES
        if _matches(module, rule.where)
        and not _matches(module, rule.except_in)
        and _matches(target, rule.never)
        and not _matches(target, rule.but)
    ]
    return [*broken, *_circles(imports)]


def _circles(imports: Sequence[Import]) -> Iterator[str]:
    """Where modules import each other, also in functions and by way of packages."""
    graph: dict[str, set[str]] = {}
    for module, _, target in imports:
        if _matches(module, WITHOUT_CIRCLES) and _matches(target, WITHOUT_CIRCLES):
            around = [each.as_posix() for each in Path(target).parents if each.name]
            # Packages that the module is not in are run before the target.
            packages = [f"{each}/__init__" for each in around if not module.startswith(f"{each}/")]
            graph.setdefault(module, set()).update([target, *packages])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle of imports: {' is imported by '.join(error.args[1])}"


def all_imports(root: Path) -> Iterator[Import]:
    files = [root / "dev.py", *(f for name in FOLDERS for f in sorted((root / name).rglob("*.py")))]
    for file in files:
        if file.is_file():
            module = file.relative_to(root).with_suffix("").as_posix()
            yield from _imports_in(root, module, ast.parse(file.read_text(encoding="utf-8")).body)


def _imports_in(root: Path, module: str, nodes: Iterable[ast.AST]) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in {_target(root, module, node, each.name) for each in node.names}:
                yield Import(module, node.lineno, target)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports_in(root, module, node.orelse)
        else:
            yield from _imports_in(root, module, ast.iter_child_nodes(node))


def _target(root: Path, module: str, node: ast.Import | ast.ImportFrom, name: str) -> str:
    """The module that one name of an import line is, or is defined in."""
    source, level = (name, 0) if isinstance(node, ast.Import) else (node.module or "", node.level)
    first = source.partition(".")[0]
    if level:
        folder = Path(module).parents[level - 1]
    elif first in BY_NAME and _matches(module, USE_NAMES):
        folder = Path(BY_NAME[first])
    else:
        return source
    path = folder.joinpath(*source.split("."))
    for own in (path / name, path / name / "__init__", path, path / "__init__"):
        if (root / own).with_suffix(".py").is_file():
            return own.as_posix()
    return source


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())
