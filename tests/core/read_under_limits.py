"""The process that reads hostile files, started as a script with a folder and a number.

Writes each file into the folder, reads it in every way, and prints a line of JSON for each. Reading
ends with a value or a CheckpointError; anything else is what the line tells.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import sys
import time
from pathlib import Path

from hostile_files import encoder, files

SECONDS_PER_FILE = 60  # of the wall: the process ends itself, whatever C code it hangs in
EXTRA_BYTES = 600 * 2**20  # of address space for all readers of one file, its own bytes included


def main(folder: Path, num_random: int) -> None:
    import_nested_core()
    import resource

    from nested_core.checkpoint import describe, detect, load_encoder, load_subject
    from nested_core.errors import CheckpointError

    path = folder / "file.safetensors"
    path.write_bytes(encoder())
    good = load_encoder(path)
    readers = (
        detect,
        load_encoder,
        lambda path: load_subject(path, good),
        lambda p: [*describe(p)],
    )
    with open("/proc/self/statm", encoding="ascii") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    for name, make in files(num_random):
        path.write_bytes(make())
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))
        faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
        started, outcomes = time.process_time(), []
        for read in readers:
            try:
                read(path)
                outcomes.append("read")
            except CheckpointError as error:
                outcomes.append(f"refused: {error}")
            except BaseException as error:
                outcomes.append(f"broken: {error!r}")
        seconds = time.process_time() - started
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stdout.write(
            json.dumps({"name": name, "seconds": seconds, "outcomes": outcomes}) + "\n"
        )
        sys.stdout.flush()


def import_nested_core() -> None:
    """From its folder: with the root on sys.path, `nodes/` hides ComfyUI's."""
    folder = Path(__file__).parents[2] / "nested_core"
    spec = importlib.util.spec_from_file_location(
        "nested_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["nested_core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
