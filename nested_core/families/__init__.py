"""What a family of models knows, and nothing else in this package may know: see `family.py`."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError
from .family import Family
from .transformers import TRANSFORMERS
from .unet import UNET

AnyFamily = Family[Any]

FAMILIES: dict[str, AnyFamily] = {each.name: each for each in (UNET, *TRANSFORMERS)}
# Of files that name none: older than the other families, or made by somebody else.
DEFAULT_FAMILY: AnyFamily = UNET


def family_named(name: str) -> AnyFamily:
    """The family of an encoder file's entry `family`.

    Raises:
        CheckpointError: no such family.
    """
    if name not in FAMILIES:
        raise CheckpointError(
            f"Family '{name:.80}': unknown, expected one of {', '.join(FAMILIES)}. "
            "A newer version of this pack may know it: update the pack."
        )
    return FAMILIES[name]
