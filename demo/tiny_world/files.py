"""Where the tiny world's trained models lie. Imports nothing heavy, so that a client can ask too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

# Set it to look at the weights of a run of train.py.
FOLDER_VARIABLE = "TINY_WORLD_WEIGHTS"
WEIGHTS = Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).parent / "weights").absolute()
VISION_FILE = "clip_vision.safetensors"


class ModelFiles(NamedTuple):
    """Of one of the world's base models. The text encoder of all is the UNet's, in its file."""

    base: str
    encoder: str


UNET = "unet"
FILES = {
    UNET: ModelFiles("base.safetensors", "encoder.safetensors"),
    "joint": ModelFiles("joint.safetensors", "joint_encoder.safetensors"),
    "cross": ModelFiles("cross.safetensors", "cross_encoder.safetensors"),
}
BASE_FILE, ENCODER_FILE = FILES[UNET]


class MissingWeightsError(FileNotFoundError):
    """A file of the tiny world's models is not there."""


def weights_file(folder: Path, name: str) -> Path:
    """The file's path.

    Raises:
        MissingWeightsError: there is no such file.
    """
    path = folder / name
    if not path.is_file():
        model = next((each for each, files in FILES.items() if name in files), UNET)
        option = "" if model == UNET else f" --model {model}"
        *others, last = dict.fromkeys((BASE_FILE, VISION_FILE, *FILES[model]))
        raise MissingWeightsError(
            f"{path}: there is no such file. Expected {', '.join(others)} and {last} "
            f"in {folder}. Restore them from the repository, or train them with "
            f"`python dev.py exec --tools lab/train.py --preset cpu{option} --output FOLDER` "
            f"and set {FOLDER_VARIABLE} to FOLDER."
        )
    return path
