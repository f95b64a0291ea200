"""A real ComfyUI server that sees this pack and no other, for the demo and for tests.

Needs no other file of this folder but launch.py beside it, so tests may load it by its path:

    with ComfyServer(this_host(), pack_root, tmp_path) as server:
        urllib.request.urlopen(f"{server.url}/object_info")
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LAUNCHER = Path(__file__).with_name("launch.py")
PACK_NAME = "comfyui-nested-attention"
FIXED_ARGUMENTS = ("--listen", "127.0.0.1", "--disable-auto-launch", "--disable-api-nodes")
LOG_TAIL_LINES = 40
STOP_SECONDS = 10.0

# Servers on this machine are asked directly, whatever proxy is set for the rest of the world.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostLike(Protocol):
    @property
    def root(self) -> Path: ...
    @property
    def python(self) -> Path: ...
    def environment(self, pack_root: Path) -> dict[str, str]: ...


@dataclass(frozen=True)
class ThisHost:
    """The host that this process runs in already (under `dev.py exec` or `dev.py test`)."""

    root: Path
    python: Path

    def environment(self, pack_root: Path) -> dict[str, str]:
        return {**os.environ, "NESTED_ATTENTION_ROOT": str(pack_root)}


def this_host() -> ThisHost:
    return ThisHost(Path(os.environ["NESTED_ATTENTION_HOST"]), Path(sys.executable))


class ServerError(RuntimeError):
    """The server died or did not answer; the text ends with its log."""


class ComfyServer:
    """main.py in a process of its own, stopped when the context ends.

    base_directory    gets ComfyUI's models/, input/, output/ ...; made if it does not exist
    extra_custom_nodes  further packs to show, each under its folder's name
    extra_args        more arguments for main.py; without a device option the CPU is chosen where
                      there is no accelerator
    """

    def __init__(
        self,
        host: HostLike,
        pack_root: Path,
        base_directory: Path,
        extra_custom_nodes: Iterable[Path] = (),
        extra_args: Sequence[str] = (),
        start_seconds: float = 180.0,
    ) -> None:
        self.base_directory = Path(base_directory).absolute()
        self.log_path = self.base_directory / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._host = host
        self._pack_root = Path(pack_root).absolute()
        self._packs = {PACK_NAME: self._pack_root}
        self._packs.update({Path(pack).name: Path(pack).absolute() for pack in extra_custom_nodes})
        self._extra_args = list(extra_args)
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ComfyServer":
        show_packs(self.base_directory / "custom_nodes", self._packs)
        self._start()
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait(STOP_SECONDS)

    def _start(self) -> None:
        command = [str(self._host.python), str(LAUNCHER), str(self._host.root / "main.py")]
        command += ["--base-directory", str(self.base_directory), "--port", str(self.port)]
        # In a file: threads of ComfyUI 0.16 do not find each other's tables in memory. And a new
        # one, as another release may have left a database behind that this one cannot read.
        database = self.base_directory / "server.db"
        database.unlink(missing_ok=True)
        command += ["--database-url", f"sqlite:///{database.as_posix()}"]
        with self.log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process only, which then stops the server.
            self._process = subprocess.Popen(
                [*command, *FIXED_ARGUMENTS, *self._extra_args],
                cwd=self.base_directory,
                env=self._host.environment(self._pack_root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_up(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        while not self._answers():
            if self._process.poll() is not None:
                status = self._process.returncode
                raise ServerError(self._failure(f"ended with exit status {status} at its start"))
            if time.monotonic() > deadline:
                raise ServerError(self._failure(f"did not answer in {self._start_seconds:.0f} s"))
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with _direct.open(f"{self.url}/system_stats", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _failure(self, what: str) -> str:
        last_lines = "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])
        return f"{self._host.root}: the server {what}. Its log ({self.log_path}):\n\n{last_lines}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.terminate()
    else:
        os.killpg(process.pid, number)


def show_packs(custom_nodes: Path, packs: dict[str, Path]) -> None:
    """Make these packs, by links, and none linked earlier, visible to ComfyUI.

    A link gives the pack its name whatever the checkout's folder is called, and leaves the
    checkout's neighbours out, which naming their common folder to ComfyUI would not.
    """
    custom_nodes.mkdir(parents=True, exist_ok=True)
    for entry in custom_nodes.iterdir():
        if _is_link(entry):
            entry.rmdir() if sys.platform == "win32" else entry.unlink()
    for name, pack in packs.items():
        if not (pack / "__init__.py").is_file():
            raise ServerError(f"{pack}: no __init__.py there, so ComfyUI cannot load it as a pack.")
        _link(custom_nodes / name, pack)


def _is_link(path: Path) -> bool:
    # A junction is no symlink, but its real path lies elsewhere.
    return path.is_symlink() or Path(os.path.realpath(path)).parent != Path(
        os.path.realpath(path.parent)
    )


def _link(link: Path, target: Path) -> None:
    if sys.platform != "win32":
        link.symlink_to(target, target_is_directory=True)
        return
    import _winapi

    try:
        _winapi.CreateJunction(str(target), str(link))
    except OSError:
        # A file system without junctions, such as a network drive.
        ignore = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
        shutil.copytree(target, link, ignore=ignore, dirs_exist_ok=True)
