"""Where the tiny world's trained models lie. Imports nothing heavy, so that a client can ask too."""

from __future__ import annotations

import os
from pathlib import Path

# Set it to look at the weights of a run of train.py.
FOLDER_VARIABLE = "TINY_WORLD_WEIGHTS"
WEIGHTS = Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).parent / "weights").absolute()
BASE_FILE, VISION_FILE = "base.safetensors", "clip_vision.safetensors"
ENCODER_FILE = "encoder.safetensors"


class MissingWeightsError(FileNotFoundError):
    """A file of the tiny world's models is not there."""


def weights_file(folder: Path, name: str) -> Path:
    """The file's path.

    Raises:
        MissingWeightsError: there is no such file.
    """
    path = folder / name
    if not path.is_file():
        raise MissingWeightsError(
            f"{path}: there is no such file. Expected {BASE_FILE}, {VISION_FILE} and {ENCODER_FILE} "
            f"in {folder}. Restore them from the repository, or train them with "
            "`python dev.py exec --tools lab/train.py --preset cpu --output FOLDER` "
            f"and set {FOLDER_VARIABLE} to FOLDER."
        )
    return path
