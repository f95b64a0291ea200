"""Unpacking ComfyUI's tree out of a source distribution."""

import hashlib
import re
import shutil
import tarfile
from pathlib import Path

from .console import DevError

TREE = re.compile(r"[^/]+/vendor/ComfyUI/(?P<name>.+)")
# A drive letter or a backslash means a path of its own to Windows.
UNSAFE = re.compile(r"^/|\\|^[A-Za-z]:|(^|/)\.\.(/|$)")


def check_sha256(path: Path, expected: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise DevError(
            f"{path.name}: its sha256 is {found}, expected {expected}. The package index served "
            "another file than the one this checkout was tested with; nothing was unpacked."
        )


def target_name(member: tarfile.TarInfo) -> str | None:
    """Where a member goes below ComfyUI's root; None for what is not a file of ComfyUI."""
    if UNSAFE.search(member.name):
        raise DevError(f"{member.name!r}: this archive member leaves the folder; refused.")
    inside = TREE.fullmatch(member.name)
    if inside is None or member.isdir():
        return None
    if not member.isfile():
        raise DevError(f"{member.name!r}: expected a plain file, found a link or device; refused.")
    return inside["name"]


def unpack_comfyui(archive: Path, folder: Path) -> int:
    """Write ComfyUI's files below `folder`; how many there were. All names are checked first."""
    with tarfile.open(archive) as source:
        wanted = [(member, target_name(member)) for member in source]
        files = [(member, name) for member, name in wanted if name is not None]
        for member, name in files:
            _write(source, member, folder / name)
    if not files:
        raise DevError(f"{archive.name}: holds no vendor/ComfyUI/ folder, expected ComfyUI there.")
    return len(files)


def _write(source: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = source.extractfile(member)
    assert content is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as output:
        shutil.copyfileobj(content, output)
