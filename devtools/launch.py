"""Runs a script or a module inside ComfyUI's environment, as `python SCRIPT` would.

    launch.py SCRIPT [args]
    launch.py -m MODULE [args]

This file runs in the host's Python. It imports nothing of ComfyUI by itself.
"""

import importlib.abc
import importlib.util
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# Whoever names one of these has chosen where models live.
DEVICE_OPTIONS = {"--cpu", "--directml", "--gpu-only", "--highvram", "--lowvram", "--novram"}
HAS_ACCELERATOR = "import sys, torch; sys.exit(not torch.accelerator.is_available())"


def arrange_path(path: list[str], first: Sequence[str], banned: Sequence[str]) -> list[str]:
    """ComfyUI's root first; neither this folder nor the checkout anywhere.

    `first` is PYTHONPATH, which ComfyUI's portable Python would ignore.
    """
    hidden = {os.path.realpath(folder) for folder in banned}
    rest = [entry for entry in path if entry not in first]
    return [entry for entry in (*first, *rest) if os.path.realpath(entry) not in hidden]


class HostArguments(importlib.abc.MetaPathFinder):
    """Gives ComfyUI its command line at the moment when it reads one.

    Outside main.py ComfyUI reads none, takes a GPU for granted and fails to import without one.
    Here it reads NESTED_ATTENTION_HOST_ARGS (in shell syntax), plus --cpu where that is needed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "comfy.cli_args":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: _with_arguments(execute, module)
        return spec


def _with_arguments(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    options = importlib.import_module("comfy.options")
    is_main = options.args_parsing  # main.py has asked for its own command line
    for_scripts = shlex.split(os.environ.get("NESTED_ATTENTION_HOST_ARGS", ""))
    given = sys.argv[1:] if is_main else for_scripts
    if DEVICE_OPTIONS.isdisjoint(given) and not _has_accelerator(is_main):
        given = [*given, "--cpu"]
    before = sys.argv
    sys.argv = [before[0], *given]
    options.enable_args_parsing()
    try:
        execute(module)
    finally:
        sys.argv = before
        options.enable_args_parsing(is_main)


def _has_accelerator(is_main: bool) -> bool:
    if is_main:
        # main.py configures CUDA's allocator before the first import of torch: ask a child.
        return subprocess.run([sys.executable, "-c", HAS_ACCELERATOR]).returncode == 0
    import torch

    return torch.accelerator.is_available()


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    checkout = os.environ["NESTED_ATTENTION_ROOT"]
    first = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = arrange_path(sys.path, first, banned=[here, checkout])
    sys.meta_path.insert(0, HostArguments())
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    sys.argv = sys.argv[1:]
    # Behind everything else: a script may bring helpers, but hides nothing of ComfyUI.
    sys.path[:] = arrange_path(
        [*sys.path, os.path.dirname(os.path.abspath(sys.argv[0]))], first, banned=[checkout]
    )
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
