"""Progress for people: what is being done, and for how long already."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
TAIL_LINES = 25

# Locks that a long command keeps, too: should this process be killed, its orphan must finish
# before another process may build in the same folder.
held_locks: list[int] = []


class DevError(Exception):
    """A problem that the user can mend; its text says how."""


def say(message: str) -> None:
    # Standard error: what a script under `exec` prints stays clean enough to be piped.
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, for an error message."""
    if not path.exists():
        return "(no log was written)"
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def run_logged(
    what: str,
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """A long command with its output in a log and a sign of life every few seconds."""
    say(f"{what} ...")
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(map(str, command))}\n")
        output.flush()
        process = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=held_locks if os.name == "posix" else (),
        )
        try:
            _wait(process, log, started)
        finally:
            process.kill()
    if process.returncode != 0:
        raise DevError(
            f"{what}: failed with exit status {process.returncode}. Its last lines:\n\n"
            f"{tail(log)}\n\nThe whole log is {log}. Mend the cause (network, disk space, "
            "a missing system package) and start the same command again."
        )
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


def _wait(process: subprocess.Popen[bytes], log: Path, started: float) -> None:
    while True:
        try:
            process.wait(timeout=HEARTBEAT_SECONDS)
            return
        except subprocess.TimeoutExpired:
            last_line = tail(log, 1).strip()
            say(f"  {time.monotonic() - started:4.0f} s  {last_line[:90]}")
