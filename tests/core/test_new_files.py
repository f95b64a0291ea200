"""Subjects saved under new names: by many programs at once, killed ones, on any file system."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nested_core.checkpoint import (
    load_subject,
    new_files,
    save_encoder,
    save_new_subject,
    save_subject,
)
from nested_core.errors import CheckpointError

ROOT = Path(__file__).parents[2]
HOUR = 3600

# Imports the package from its folder as conftest does: with the root on the path, nodes/ hides others.
PREAMBLE = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location(
    "nested_core", {str(ROOT / "nested_core" / "__init__.py")!r},
    submodule_search_locations=[{str(ROOT / "nested_core")!r}])
package = sys.modules["nested_core"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
import torch
torch.set_num_threads(1)
from nested_core.checkpoint import load_encoder, save_encoder, save_new_subject, save_subject
from nested_core.subject import Subject
encoder = load_encoder(sys.argv[1])
def subject(number):
    return Subject(torch.full((4, 24), float(number)), encoder, (4,), "person", weights=())
"""


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: Any, make_encoder: Any) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "face.safetensors"
    save_encoder(make_encoder(), path)
    return path


def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(params=["with links", "without links"])
def links(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a file system that knows second names for a file, and on one that does not."""
    if request.param == "without links":
        monkeypatch.setattr(os, "link", _no_links)
    return request.param


def _no_links(*arguments: Any, **options: Any) -> None:
    raise OSError(95, "Operation not supported")


SAVES = """
folder, first = sys.argv[2], int(sys.argv[3])
save_encoder(encoder, os.path.join(folder, f"encoder-{first}.safetensors"))
save_subject(subject(7), os.path.join(folder, f"subject-{first}.safetensors"))
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + 80):
    if number == first + 40 and hasattr(os, "link"):
        del os.link  # as on a file system without second names
    print(save_new_subject(subject(number), folder, "people/anna").name, flush=True)
"""


@pytest.fixture(scope="module")
def saved_at_once(tmp_path_factory: Any, encoder_file: Path) -> tuple[Path, list[str]]:
    """The folder into which three programs saved at once, and the names that they told."""
    folder = tmp_path_factory.mktemp("saved")
    programs = [
        start(SAVES, encoder_file, folder, 100 * n, PYTHONHASHSEED=str(n + 1)) for n in range(3)
    ]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    told = [name for program in programs for name in program.communicate()[0].split()]
    assert [program.returncode for program in programs] == [0] * 3
    return folder, told


def test_programs_that_save_at_once_lose_nothing(
    saved_at_once: tuple[Path, list[str]], make_encoder: Any
):
    folder, told = saved_at_once[0] / "people", saved_at_once[1]
    assert sorted(told) == names_in(folder)
    assert len(set(told)) == 240
    encoder = make_encoder()
    found = {float(load_subject(folder / name, encoder).tokens[0, 0]) for name in told}
    assert found == {100.0 * n + i for n in range(3) for i in range(80)}


def test_the_same_content_gives_the_same_bytes_in_every_process(
    saved_at_once: tuple[Path, list[str]], encoder_file: Path
):
    folder, _ = saved_at_once
    for kind in ("encoder", "subject"):
        contents = {(folder / f"{kind}-{n}.safetensors").read_bytes() for n in (0, 100, 200)}
        assert len(contents) == 1
    assert (folder / "encoder-0.safetensors").read_bytes() == encoder_file.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no SIGKILL")
def test_a_killed_save_leaves_no_file_that_is_offered_and_cannot_be_read(
    tmp_path: Path, encoder_file: Path, make_encoder: Any
):
    endless = SAVES.replace("first + 80", "first + 10**6").replace("first + 40", "-1")
    program = start(endless, encoder_file, tmp_path, 0)
    program.stdin.write("go\n")
    program.stdin.flush()
    for _ in range(20):
        program.stdout.readline()
    program.send_signal(signal.SIGKILL)
    program.communicate()
    folder, encoder = tmp_path / "people", make_encoder()
    offered = [name for name in names_in(folder) if name.endswith(".safetensors")]
    assert len(offered) >= 19
    for name in offered:
        load_subject(folder / name, encoder)


def test_numbers_go_on_from_the_highest(tmp_path: Path, make_subject: Any, links: str):
    for name in ("anna_00007_.safetensors", "annabel_00050_.safetensors", "anna_00099_.txt"):
        (tmp_path / name).touch()
    for name in (f"anna_{'9' * 300}_"[:200], "anna_x_.safetensors", "anna_1_.safetensors"):
        (tmp_path / name).touch()
    saved = [save_new_subject(make_subject(), tmp_path, "anna").name for _ in range(2)]
    assert saved == ["anna_00008_.safetensors", "anna_00009_.safetensors"]


def test_a_name_that_is_taken_meanwhile_is_passed_over(
    tmp_path: Path,
    make_subject: Any,
    make_encoder: Any,
    monkeypatch: pytest.MonkeyPatch,
    links: str,
):
    # What a cache of a network share shows is a folder of the past.
    monkeypatch.setattr(new_files, "_first_number", lambda *arguments: 1)
    paths = [save_new_subject(make_subject(seed=n), tmp_path, "anna") for n in range(3)]
    assert [path.name for path in paths] == [f"anna_0000{n}_.safetensors" for n in (1, 2, 3)]
    for n, path in enumerate(paths):
        assert torch.equal(load_subject(path, make_encoder()).tokens, make_subject(seed=n).tokens)
    (tmp_path / "anna_00004_.safetensors").mkdir()
    assert save_new_subject(make_subject(), tmp_path, "anna").name == "anna_00005_.safetensors"


def test_windows_takes_a_name_by_renaming(
    tmp_path: Path, make_subject: Any, monkeypatch: pytest.MonkeyPatch
):
    def rename(source: Path, target: Path) -> None:
        if target.exists():  # as Windows does
            raise FileExistsError(17, "File exists")
        os.replace(source, target)

    monkeypatch.setattr(new_files, "_first_number", lambda *arguments: 1)
    monkeypatch.setattr(new_files.os, "rename", rename)
    monkeypatch.setattr(new_files, "_IS_WINDOWS", True)
    names = [save_new_subject(make_subject(), tmp_path, "anna").name for _ in range(2)]
    assert names == names_in(tmp_path) == ["anna_00001_.safetensors", "anna_00002_.safetensors"]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("os.fsync", "No space left"),
        ("os.link", "No space left"),
        ("os.replace", "No space left"),
    ],
)
def test_the_first_error_is_the_one_that_is_told(
    tmp_path: Path, make_subject: Any, monkeypatch: pytest.MonkeyPatch, step: str, message: str
):
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    def stuck(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "cleaning up fails too")

    monkeypatch.setattr(step, fail)
    if step != "os.fsync":
        monkeypatch.setattr(os, "link", _no_links)
        monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "unlink", stuck)
    monkeypatch.setattr(os, "unlink", stuck)
    for save in (
        lambda: save_subject(make_subject(), tmp_path / "anna.safetensors"),
        lambda: save_new_subject(make_subject(), tmp_path, "anna"),
    ):
        with pytest.raises(CheckpointError, match=rf"cannot be written .*{message}.* not full"):
            save()


def test_a_failed_save_leaves_nothing(
    tmp_path: Path, make_subject: Any, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", _no_links)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_new_subject(make_subject(), tmp_path, "anna")
    assert names_in(tmp_path) == []


def _old(path: Path, seconds: float) -> Path:
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_what_killed_saves_left_is_removed_when_it_is_old(
    tmp_path: Path, make_subject: Any, links: str
):
    digits = "0123456789abcdef" * 2
    ours = [f".safetensors.{digits}.tmp", f".anna_00001_.safetensors.{digits}.tmp"]
    others = [
        f"{digits}.tmp",
        ".safetensors.tmp",
        f".download.{digits}.tmp",
        ".anna.safetensors.swp",
    ]
    for name in ours + others:
        _old(tmp_path / name, 2 * HOUR)
    young = _old(tmp_path / f".safetensors.{digits[::-1]}.tmp", 60)
    claimed = _old(tmp_path / "rex_00001_.safetensors", 2 * HOUR)
    _old(tmp_path / "notes.safetensors", 2 * HOUR)
    saved = save_new_subject(make_subject(), tmp_path, "anna")
    kept = {*others, young.name, saved.name, "notes.safetensors"}
    # An empty file of a numbered name is what a save leaves where there are no links, if it is killed.
    assert {*names_in(tmp_path)} == kept | ({claimed.name} if links == "with links" else set())


def test_saving_over_a_file_cleans_up_too(tmp_path: Path, make_subject: Any):
    _old(tmp_path / f".anna.safetensors.{'0' * 32}.tmp", 2 * HOUR)
    save_subject(make_subject(), tmp_path / "anna.safetensors")
    assert names_in(tmp_path) == ["anna.safetensors"]


# ---- names


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("anna", "anna"),
        ("people/anna", "people/anna"),
        (r"people\anna", "people/anna"),
        ("./people//anna", "people/anna"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("安娜 2.5 (new)", "安娜 2.5 (new)"),
        ("console", "console"),
        ("com10", "com10"),
        ("nulls/con_1", "nulls/con_1"),
        ("x" * 200, "x" * 200),
        ("👩‍🚀", "👩‍🚀"),
    ],
)
def test_a_prefix_names_folders_and_a_file(
    tmp_path: Path, make_subject: Any, prefix: str, path: str
):
    saved = save_new_subject(make_subject(), tmp_path, prefix)
    assert saved == tmp_path / f"{path}_00001_.safetensors"
    assert saved.is_file()


DEVICES = ["CON", "con", "Nul", "PRN", "aux", "COM1", "com9", "LPT3", "COM¹", "lpt²", "CONIN$"]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("", "has no name"),
        ("people/", "has no name"),
        (".", "has no name"),
        ("/etc/anna", "points outside the folder of subjects"),
        (r"\\server\anna", "points outside the folder of subjects"),
        ("../anna", "points outside the folder of subjects"),
        (r"..\..\anna", "points outside the folder of subjects"),
        ("people/../../anna", "points outside the folder of subjects"),
        ("C:/anna", "holds :, which Windows does not allow"),
        ("C:anna", "holds :, which Windows does not allow"),
        ("anna?", r"holds \?, which Windows does not allow"),
        ("anna*/x", r"holds \*, which Windows does not allow"),
        ('"anna"', "holds "),
        ("<anna>", "holds <, which Windows does not allow"),
        ("an|na", r"holds \|, which Windows does not allow"),
        ("an\x00na", r"holds U\+0000, which no name may hold"),
        ("an\nna", r"holds U\+000A, which no name may hold"),
        ("an\x7fna", r"holds U\+007F, which no name may hold"),
        ("an\ud800na", r"holds U\+D800, which no name may hold"),
        ("anna.", "ends with a dot or a space"),
        ("anna ", "ends with a dot or a space"),
        ("people./anna", "ends with a dot or a space"),
        (" ", "ends with a dot or a space"),
        ("...", "ends with a dot or a space"),
        *((device, "is a device on Windows") for device in DEVICES),
        ("nul.anna", "is a device on Windows"),
        ("NUL .x", "is a device on Windows"),
        ("con/anna", "is a device on Windows"),
        ("people/lpt1.d/anna", "is a device on Windows"),
        ("x" * 201, "has a part of 201 bytes, at most 200 fit"),
        ("安" * 67, "has a part of 201 bytes, at most 200 fit"),
        (f"{'x' * 300}/anna", "has a part of 300 bytes, at most 200 fit"),
        ("/".join(["x" * 150] * 5), "is longer than 600 bytes"),
        ("x" * 1_000_000, "has a part of 1000000 bytes"),
    ],
)
def test_a_prefix_that_some_platform_cannot_write_is_refused(
    tmp_path: Path, make_subject: Any, prefix: str, message: str
):
    folder = tmp_path / "subjects"
    with pytest.raises(
        CheckpointError, match=rf"^Save Subject: the filename_prefix .*{message}.*people/anna\.$"
    ) as error:
        save_new_subject(make_subject(), folder, prefix)
    assert len(str(error.value).encode()) < 2500
    assert names_in(tmp_path) == []


def test_a_folder_of_a_prefix_that_is_a_file_is_one_of_our_errors(
    tmp_path: Path, make_subject: Any
):
    (tmp_path / "people").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*people"):
        save_new_subject(make_subject(), tmp_path, "people/anna")


@pytest.mark.parametrize("name", ["an\x00na.safetensors", "an\ud800na.safetensors", "x" * 300, "."])
def test_a_path_that_no_file_can_have_is_one_of_our_errors(
    tmp_path: Path, make_subject: Any, name: str
):
    with pytest.raises(CheckpointError, match="cannot be written") as error:
        save_subject(make_subject(), tmp_path / name)
    assert str(error.value).encode()
    assert names_in(tmp_path) == []


def test_the_metadata_is_sorted_and_the_data_aligned(encoder_file: Path, make_encoder: Any):
    content = encoder_file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode()
    names = re.findall(r'"(format|format_version|config)":', header)
    assert names == ["config", "format", "format_version"]
    assert length % 8 == 0
