"""Where ComfyUI keeps encoder and subject files."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import folder_paths

from ...nested_core.checkpoint import source_files
from ...nested_core.errors import MissingFileError, shown

ENCODERS = "nested_attention"
SUBJECTS = "nested_subjects"
_SUFFIX = ".safetensors"


def register_folders() -> None:
    """Makes `models/nested_attention` and `models/nested_subjects` known, beside the user's extra paths."""
    for kind in (ENCODERS, SUBJECTS):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
        # An extra_model_paths.yaml may have named the folder already, with every suffix allowed.
        folder_paths.folder_names_and_paths[kind][1].add(_SUFFIX)


def file_names(kind: str) -> list[str]:
    """The files that a combo offers."""
    return folder_paths.get_filename_list(kind)


def file_path(kind: str, name: str) -> Path:
    """The file of that name.

    Raises:
        MissingFileError: no such file; names the folders that were searched.
    """
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(kind))
        raise MissingFileError(
            f"'{shown(name, 300)}' was not found. Put the .safetensors file into {folders}, then refresh the "
            "node list (R) and choose it again."
        )
    return Path(path)


def file_fingerprint(kind: str, name: str) -> str:
    """Changes when the file, or another shard of it, is replaced, so that ComfyUI reads it again."""
    path = folder_paths.get_full_path(kind, name)
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
    parts = {
        "%year%": f"{now.tm_year}",
        "%month%": f"{now.tm_mon:02}",
        "%day%": f"{now.tm_mday:02}",
        "%hour%": f"{now.tm_hour:02}",
        "%minute%": f"{now.tm_min:02}",
        "%second%": f"{now.tm_sec:02}",
    }
    return re.sub("%[a-z]+%", lambda match: parts.get(match[0], match[0]), filename_prefix)
