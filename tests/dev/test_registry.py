"""What the Comfy Registry gets: the archive that is published, and what pyproject.toml says of it."""

import ast
import io
import os
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
# All that ComfyUI, its front end and the trainer read. Not all of them need exist.
NEEDED_FOLDERS = ("nodes", "nested_core", "js", "locales", "example_workflows", "subgraphs")
NEEDED_FILES = ("__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
DEVELOPERS = ("tests", "benchmarks", "demo", "lab", "devtools", "dev.py", ".ci", ".github")


def git_files(*options: str) -> set[str]:
    # A hook's variables would have git speak of another repository or index.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return set(filter(None, listed.stdout.decode().split("\0")))


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("the archive is made of what git tracks, and this is no clone or has no git")
    return git_files()


@pytest.fixture(scope="module")
def archive(tracked: set[str]) -> set[str]:
    """As `comfy node publish` packs it: what git tracks, less what .comfyignore names."""
    return tracked - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# --- the archive


def test_the_archive_is_small(archive: set[str]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as output:
        for name in sorted(archive):
            # Like the publisher, who leaves out what is tracked and deleted.
            if (ROOT / name).is_file():
                output.write(ROOT / name, name)
    size = len(packed.getvalue())
    print(f"{len(archive)} files, {size / MEGABYTE:.2f} MB packed")  # noqa: T201  (pytest -s)
    assert 0 < size < 2 * MEGABYTE


def test_the_archive_has_all_that_users_need(tracked: set[str], archive: set[str]) -> None:
    assert set(NEEDED_FILES) <= archive
    needed = {name for name in tracked if PurePosixPath(name).parts[0] in NEEDED_FOLDERS}
    texts = {name for name in tracked if PurePosixPath(name).match("docs/*.md")}
    assert needed
    assert texts
    assert needed | texts <= archive, sorted((needed | texts) - archive)


def test_the_archive_has_nothing_of_developers_and_no_figures(archive: set[str]) -> None:
    of_developers = {name for name in archive if PurePosixPath(name).parts[0] in DEVELOPERS}
    figures = {name for name in archive if name.startswith("docs/") and not name.endswith(".md")}
    assert not of_developers | figures


def test_the_archive_imports_nothing_that_it_lacks(tracked: set[str], archive: set[str]) -> None:
    lacking, found = set(), 0
    for name in sorted(archive):
        if not name.endswith(".py"):
            continue
        for module, is_own in imported_modules(name, (ROOT / name).read_text(encoding="utf-8")):
            files = {f"{module}.py", f"{module}/__init__.py"} & tracked
            found += len(files)
            lacking |= {f"{name} needs {file}" for file in files - archive}
            if is_own and not files:
                lacking.add(f"{name} needs {module}, which git does not track")
    assert not lacking
    assert found > 100, "the pack's own imports were not found"


def imported_modules(name: str, source: str) -> set[tuple[str, bool]]:
    """What a file imports, each as a path from the root without its ending.

    And whether it must be there: what an absolute import names may be somebody else's, and what
    stands after `import` in `from .a import b` may be a function.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name.replace(".", "/"), False) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = PurePosixPath(name).parts[: -node.level] if node.level else ()
            parts = (*parts, *(node.module.split(".") if node.module else ()))
            found.add(("/".join(parts), node.level > 0))
            found |= {("/".join((*parts, alias.name)), False) for alias in node.names}
    return found


# --- pyproject.toml


def test_the_name_is_one_that_the_registry_advises(settings: dict[str, Any]) -> None:
    name = settings["project"]["name"]
    assert re.fullmatch(r"[a-z](?:[._-]?[a-z0-9])*", name)
    assert len(name) < 100
    assert "comfy" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", settings["project"]["version"])


def test_every_classifier_that_the_registry_reads_is_one_it_knows(settings: dict[str, Any]) -> None:
    environments = "GPU :: (NVIDIA CUDA|AMD ROCm|Intel Arc|Apple Metal)|NPU :: Huawei Ascend"
    systems = "(Microsoft|POSIX|MacOS)( :: .+)?|OS Independent"
    for line in settings["project"]["classifiers"]:
        topic, _, value = line.partition(" :: ")
        known = {"Environment": environments, "Operating System": systems}.get(topic, ".+")
        assert re.fullmatch(known, value), line


def test_the_oldest_comfyui_is_the_one_that_is_tested(settings: dict[str, Any]) -> None:
    pins = (ROOT / "devtools" / "pins.py").read_text(encoding="utf-8")
    oldest = re.search(r'^OLDEST = ComfyPin\(\n    version="([\d.]+)"', pins, re.MULTILINE)
    assert oldest is not None
    assert settings["tool"]["comfy"]["requires-comfyui"] == f">={oldest[1]}"


@pytest.mark.parametrize(
    ("key", "shape", "widest", "largest"),
    [("Icon", (1, 1), 400, 60_000), ("Banner", (21, 9), 2100, 150_000)],
)
def test_the_registry_finds_its_pictures(
    settings: dict[str, Any],
    tracked: set[str],
    key: str,
    shape: tuple[int, int],
    widest: int,
    largest: int,
) -> None:
    repository = settings["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    address = settings["tool"]["comfy"][key]
    served = f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(served)
    name = address.removeprefix(served)
    assert name in tracked
    picture = (ROOT / name).read_bytes()
    width, height = png_size(picture)
    assert width * shape[1] == height * shape[0]
    assert width <= widest
    assert len(picture) < largest


def png_size(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    return width, height
