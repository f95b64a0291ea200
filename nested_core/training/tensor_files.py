"""Tensor files of a checkpoint: safetensors, the same bytes for the same tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from ..checkpoint.safetensors_file import read_header
from ..checkpoint.weights import check_finite, listing
from .errors import TrainingError
from .files import shown, writing

_NOTES = "notes"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Writes them as they are, whatever their dtype, and `notes` as JSON beside them.

    Raises:
        TrainingError: the disk refuses.
    """
    # Copies, since the format allows none that share memory.
    apart = {
        name: each.detach().to("cpu", copy=True).contiguous() for name, each in tensors.items()
    }
    # One entry: the writer puts several into an order that differs from run to run.
    metadata = None if notes is None else {_NOTES: json.dumps(notes, sort_keys=True)}
    with writing(path):
        save_file(apart, path, metadata=metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, in memory of their own.

    Raises:
        CheckpointError: missing, cut off, damaged, or with NaN or infinite values.
    """
    read_header(path)
    try:
        tensors = {name: each.clone() for name, each in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{path.name}: cannot be read ({shown(str(error))}), expected a safetensors file."
        ) from error
    check_finite(path.name, {n: each for n, each in tensors.items() if each.is_floating_point()})
    return tensors


def read_notes(path: Path) -> dict[str, Any]:
    """The `notes` that a file was written with, an object; empty without any.

    Raises:
        TrainingError: they are something else.
    """
    text = read_header(path).metadata.get(_NOTES, "{}")
    try:
        notes: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path.name}: its notes are no JSON ({error}).") from error
    if not isinstance(notes, dict):
        raise TrainingError(f"{path.name}: its notes are {shown(notes)}, expected an object.")
    return cast("dict[str, Any]", notes)


def check_trained(step: int, model: nn.Module) -> None:
    """Raises TrainingError where a weight is no number: earlier checkpoints are worth more."""
    wrong = [name for name, each in model.named_parameters() if not bool(each.isfinite().all())]
    if wrong:
        raise TrainingError(
            f"step {step}: the training has diverged, {listing('weights are no numbers', wrong)}. "
            "Resume from the last checkpoint with a lower learning_rate or, with fp16, with bf16."
        )


def check_like(where: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises TrainingError where names, shapes or precisions differ."""
    missing = [shown(name) for name in sorted(set(expected) - set(found))]
    unknown = [shown(name) for name in sorted(set(found) - set(expected))]
    other = [
        f"{name} is {each.dtype} {shown(list(each.shape))}, expected {expected[name].dtype} "
        f"{list(expected[name].shape)}"
        for name, each in found.items()
        if name in expected
        and (each.shape != expected[name].shape or each.dtype != expected[name].dtype)
    ]
    wrong = [
        listing(label, names, limit=3)
        for label, names in (("missing", missing), ("unknown", unknown), ("different", other))
        if names
    ]
    if wrong:
        raise TrainingError(
            f"{where}: is not of this run's encoder, which has {len(expected)} tensors: "
            f"{'; '.join(wrong)}."
        )
