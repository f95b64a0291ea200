"""Where ComfyUI keeps the files that our nodes name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import folder_paths

from ...nested_core.checkpoint import source_files
from ...nested_core.errors import MissingFileError, shown

ENCODERS = "nested_attention"
SUBJECTS = "nested_subjects"
CLIP_VISIONS = "clip_vision"  # ComfyUI's own
_SUFFIX = ".safetensors"


def register_folders() -> None:
    """Makes `models/nested_attention` and `models/nested_subjects` known, beside the user's extra paths."""
    for kind in (ENCODERS, SUBJECTS):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
        # An extra_model_paths.yaml may have named the folder already, with every suffix allowed.
        folder_paths.folder_names_and_paths[kind][1].add(_SUFFIX)


def file_names(kind: str) -> list[str]:
    """The files that a combo offers; where there is none, the folder that the first one belongs in.

    A combo without any entry shows `undefined`, and says nothing of what is missing.
    """
    return folder_paths.get_filename_list(kind) or [_no_file(kind)]


def _no_file(kind: str) -> str:
    return f"none in models/{kind}"  # short: a node shows about thirty characters of it


def file_path(kind: str, name: str) -> Path:
    """The file of that name.

    Raises:
        MissingFileError: no such file; names the folders that were searched.
    """
    problem = missing_file(kind, name)
    if problem is not None:
        raise MissingFileError(problem)
    return Path(folder_paths.get_full_path_or_raise(kind, name))


def missing_file(kind: str, name: str | None) -> str | None:
    """What to do about a file that no combo offers, or None: what a node says before the run.

    As for `file_fingerprint`, None is a name that is not known yet.
    """
    if name is None:
        return None
    offered = name in folder_paths.get_filename_list(kind)
    if offered and folder_paths.get_full_path(kind, name) is not None:
        return None
    if name == _no_file(kind):
        return (
            f"there is no {_WHAT[kind]} yet. Put its .safetensors file into {searched(kind)}, then "
            f"{_CHOOSE}."
        )
    return (
        f"'{shown(name, 300)}' was not found. Put the .safetensors file into {searched(kind)}, then "
        f"{_CHOOSE} again."
    )


def searched(kind: str) -> str:
    """The folders in which files of this kind are looked for."""
    return " or ".join(folder_paths.get_folder_paths(kind))


_CHOOSE = "refresh the node list (R) and choose it"
_WHAT = {ENCODERS: "encoder", SUBJECTS: "subject", CLIP_VISIONS: "CLIP vision model"}


def file_fingerprint(kind: str, name: str | None) -> str:
    """Changes when the file, or another shard of it, is replaced, so that ComfyUI reads it again.

    None is a name that another node hands over; ComfyUI does not know it before that one ran.
    """
    path = None if name is None else folder_paths.get_full_path(kind, name)
    if path is None:
        return "missing"
    return "|".join(_state(part) for part in source_files(Path(path)))


def _state(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}|missing"
    return f"{path}|{status.st_size}|{status.st_mtime_ns}"


def save_folder(kind: str) -> Path:
    """The folder that new files go into: the first of the user's."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def with_date(filename_prefix: str) -> str:
    """The prefix with `%year%`, `%month%`, ... replaced by now, as ComfyUI's saving nodes do."""
    now = time.localtime()
    parts = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    for name, code in parts.items():
        filename_prefix = filename_prefix.replace(f"%{name}%", time.strftime(code, now))
    return filename_prefix
