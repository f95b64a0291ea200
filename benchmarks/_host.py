"""Starts ComfyUI inside a benchmark, and lends it the tests' tiny models. Import it first."""

from __future__ import annotations

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("NESTED_ATTENTION_ROOT") or Path(__file__).parents[1])
ARGUMENTS = sys.argv[1:]


def _start() -> None:
    # ComfyUI reads its options from the command line when it is first imported.
    sys.argv[1:] = shlex.split(os.environ.get("NESTED_ATTENTION_HOST_ARGS", ""))
    for folder in ("tests/comfy", "demo/custom_nodes/tiny_models"):
        sys.path.append(str(ROOT / folder))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    if not sys.argv[1:]:
        comfy.cli_args.args.cpu = True


_start()


def seconds(action: Callable[[], Any], repeats: int = 5) -> float:
    """Median time of the action, on the processor and whatever device it waits for."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def report(name: str, value: float, unit: str = "ms") -> None:
    print(f"{name:64} {value * 1000 if unit == 'ms' else value:10.2f} {unit}", flush=True)
