"""The user's cache folder, and folders in it that are either complete or made anew."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .console import held_locks, say

NAME = "comfyui-nested-attention"
MARKER = ".complete"


def cache_folder(
    environ: Mapping[str, str] = os.environ, system: str = sys.platform, home: Path | None = None
) -> Path:
    home = home or Path.home()
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]).absolute() / NAME
    if system == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / NAME
    if system == "darwin":
        return home / "Library" / "Caches" / NAME
    return home / ".cache" / NAME


def is_complete(folder: Path) -> bool:
    return (folder / MARKER).exists()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder, built if no earlier run finished building it.

    The marker is written last: an interrupted build is thrown away by the next one. It is built
    in its final place, since a virtual environment does not survive being renamed.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            (folder / MARKER).touch()
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time. The system gives the lock back when its holder dies."""
    with path.open("a+") as file:
        if not _try_lock(file):
            say(f"another process is at work on {path.stem}; waiting for it ...")
            while not _try_lock(file):
                time.sleep(0.5)
        held_locks.append(file.fileno())
        try:
            yield
        finally:
            held_locks.remove(file.fileno())


def _try_lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
