"""Where ComfyUI keeps encoder and subject files."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...nested_core.checkpoint import source_files

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
        FileNotFoundError: no such file; names the folders that were searched.
    """
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths(kind))
        raise FileNotFoundError(
            f"'{name}' was not found. Put the .safetensors file into {folders}, then refresh the "
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


def new_file_path(kind: str, filename_prefix: str) -> tuple[Path, str]:
    """A path that is not taken yet, numbered as ComfyUI numbers pictures, and its name in combos."""
    folder = folder_paths.get_folder_paths(kind)[0]
    directory, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
        filename_prefix, folder
    )
    name = f"{stem}_{counter:05}_{_SUFFIX}"
    return Path(directory) / name, os.path.join(subfolder, name)
