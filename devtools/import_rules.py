"""Who may import what, read from the source. `dev.py lint` says every line that breaks a rule.

A module of this checkout is written as its path, `nodes/bridge/vision`, and any other module by its
name, `comfy.utils`. So `nodes/*` is ours and `nodes` is ComfyUI's. Imports for annotations alone,
under `TYPE_CHECKING`, are free. The usual tool, import-linter, does not see `from ..nested_core` in
`nodes/`, which steps out of what is the topmost package for it.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HOST = ("comfy*", "folder_paths", "server", "nodes", "execution", "node_helpers", "latent_preview")
APART = ("nested_core/checkpoint/*", "nested_core/maps/*", "nested_core/training/*")
USERS = ("nodes/*", "lab/*", "demo/*", "tests/*")


@dataclass(frozen=True)
class Rule:
    """What the modules of some folders never import; patterns as in a shell, * crosses folders."""

    where: Sequence[str]
    never: Sequence[str]
    why: str
    except_in: Sequence[str] = ()
    but: Sequence[str] = ()


RULES = (
    Rule(["nested_core/*"], [*HOST, *USERS], "nested_core knows neither ComfyUI nor its own users"),
    Rule(
        ["nested_core/*"],
        APART,
        "the method, and what it knows of families, knows neither files nor drawing nor training",
        except_in=[*APART, "nested_core/__main__"],
    ),
    Rule(
        ["nested_core/checkpoint/*"],
        ["nested_core/maps/*", "nested_core/training/*"],
        "files know the method alone",
    ),
    Rule(
        ["nested_core/maps/*"],
        ["nested_core/checkpoint/*", "nested_core/training/*"],
        "drawing knows the method alone",
    ),
    Rule(
        ["nested_core/*"],
        ["diffusers*", "transformers*"],
        "one module knows diffusers",
        except_in=["nested_core/training/diffusers_model"],
    ),
    Rule(
        ["nested_core/*", "nodes/*"],
        ["nested_core", "nested_core.*"],
        "ComfyUI loads the pack under a name of its own: import it relatively",
    ),
    Rule(
        ["nodes/*"],
        HOST,
        "only nodes/bridge knows ComfyUI's insides; nodes know comfy_api, for their schemas",
        except_in=["nodes/bridge/*"],
        but=["comfy_api*"],
    ),
    Rule(
        ["nodes/*"],
        ["nested_core/training/*", "lab/*", "demo/*", "tests/*"],
        "nodes run without training, evaluations and the demo",
    ),
    Rule(
        ["nodes/bridge/*"],
        ["nodes/*"],
        "the bridge does not know the nodes",
        but=["nodes/bridge/*"],
    ),
    Rule(
        ["nodes/bridge/text/*"],
        ["nodes/bridge/model/*"],
        "text is read before any model runs",
    ),
    Rule(["lab/*", "demo/*"], ["nodes/*"], "they use the nodes as users do, through ComfyUI"),
    Rule(["demo/*"], ["lab/*"], "the demo runs without the evaluations"),
    Rule(
        ["lab/measures/*", "lab/report/*", "lab/subjects/*"],
        HOST,
        "figures and pages are made without ComfyUI",
    ),
    Rule(
        ["tests/*", "devtools/*", "dev"],
        HOST,
        "only tests/comfy runs inside ComfyUI",
        except_in=["tests/comfy/*"],
    ),
)

# Imports that break a rule today: (module, what it imports). Each is to go.
NOT_YET: tuple[tuple[str, str], ...] = ()

FOLDERS = ("nested_core", "nodes", "lab", "demo", "tests", "devtools")
# No circle of imports in and between them.
WITHOUT_CIRCLES = ("nested_core/*", "nodes/*", "lab/*", "demo/*")
# What scripts find by its own name, and the folder that holds it.
BY_NAME = {"nested_core": ".", "lab": ".", "tiny_world": "demo", "client": "demo"}
USE_NAMES = ("lab/*", "demo/*", "tests/*")


@dataclass(frozen=True)
class Import:
    """One import in one line of a module."""

    module: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line} imports {self.target}"


def problems(root: Path, not_yet: Sequence[tuple[str, str]] = NOT_YET) -> list[str]:
    """A sentence for each import that breaks a rule, and for each circle's first one found."""
    imports = list(all_imports(root))
    broken = [(found, rule) for found in imports for rule in RULES if breaks(found, rule)]
    excused = {(found.module, found.target) for found, _ in broken} & set(not_yet)
    sentences = [
        f"{found}: {rule.why}"
        for found, rule in broken
        if (found.module, found.target) not in excused
    ]
    for module, target in not_yet:
        if (module, target) not in excused:
            sentences.append(f"NOT_YET: {module} no longer imports {target}; take the line out")
    return [*sentences, *circles(imports)]


def breaks(found: Import, rule: Rule) -> bool:
    return (
        _matches(found.module, rule.where)
        and not _matches(found.module, rule.except_in)
        and _matches(found.target, rule.never)
        and not _matches(found.target, rule.but)
    )


def circles(imports: Sequence[Import]) -> Iterator[str]:
    """One sentence where modules import each other, also in functions and by way of packages."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if _matches(found.module, WITHOUT_CIRCLES) and _matches(found.target, WITHOUT_CIRCLES):
            graph.setdefault(found.module, set()).update(_run_by(found))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle of imports: {' is imported by '.join(error.args[1])}"


def _run_by(found: Import) -> Iterator[str]:
    """The target, and the packages around it that its import runs first."""
    yield found.target
    for folder in Path(found.target).parents:
        if folder.name and not found.module.startswith(f"{folder.as_posix()}/"):
            yield f"{folder.as_posix()}/__init__"


def all_imports(root: Path) -> Iterator[Import]:
    files = [root / "dev.py", *(f for name in FOLDERS for f in sorted((root / name).rglob("*.py")))]
    for file in files:
        if file.is_file():
            module = file.relative_to(root).with_suffix("").as_posix()
            yield from _imports_in(root, module, ast.parse(file.read_text(encoding="utf-8")))


def _imports_in(root: Path, module: str, tree: ast.AST) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from _imports_in(root, module, other)
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield Import(module, node.lineno, _by_name(root, module, name.name))
        elif isinstance(node, ast.ImportFrom):
            for target in _targets(root, module, node):
                yield Import(module, node.lineno, target)
        else:
            yield from _imports_in(root, module, node)


def _targets(root: Path, module: str, node: ast.ImportFrom) -> set[str]:
    """Modules only: what else is imported by name comes from the module in front of it."""
    if node.level:
        folder = Path(module).parents[node.level - 1]
        start = folder.joinpath(*(node.module or "").split("."))
        own = [_own(root, start / name.name) or _own(root, start) for name in node.names]
        return {target for target in own if target}
    name = node.module or ""
    return {_by_name(root, module, f"{name}.{each.name}", otherwise=name) for each in node.names}


def _by_name(root: Path, module: str, name: str, otherwise: str | None = None) -> str:
    """A module that is imported by its full name; `otherwise` is the one that surely is a module."""
    first = name.partition(".")[0]
    if first in BY_NAME and _matches(module, USE_NAMES):
        for candidate in (name, otherwise):
            own = candidate and _own(root, Path(BY_NAME[first], *candidate.split(".")))
            if own:
                return own
    return otherwise or name


def _own(root: Path, path: Path) -> str | None:
    """The module at this path of the checkout, `FOLDER/__init__` for a package."""
    for module in (path, path / "__init__"):
        if (root / module).with_suffix(".py").is_file():
            return module.as_posix()
    return None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
