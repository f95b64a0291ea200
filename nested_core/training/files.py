"""Files of a run's folder: written whole or not at all, read without trusting them.

JSON, and tensors as safetensors: the same bytes for the same tensors. Every failure is one sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..checkpoint.safetensors_file import read_header
from ..checkpoint.weights import check_finite, listing
from .errors import TrainingError

UNFINISHED = ".unfinished"
_MOST_JSON_BYTES = 100_000_000
_LONGEST_SHOWN = 80
_NOTES = "notes"


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turns whatever the disk refuses while `path` is written into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(
            f"{path}: cannot be written ({reason}). Free space on that disk, or check that you may "
            "write there; --resume then goes on from the last checkpoint."
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file; until it is complete, an older one stays in place.

    Raises:
        TrainingError: the disk refuses.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):  # what went wrong before is what the user has to hear
                temporary.unlink(missing_ok=True)
            raise


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        TrainingError: missing, no plain file, too long, or no JSON object.
    """
    expected = "expected the JSON object that this trainer writes"
    if not path.is_file():
        problem = "is no file" if path.exists() else "is missing"
        raise TrainingError(f"{path.name}: {problem}, {expected}.")
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"more than {_MOST_JSON_BYTES:,} bytes")
        value: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path.name}: cannot be read ({error}), {expected}.") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path.name}: holds {short_repr(value)}, {expected}.")
    return cast("dict[str, Any]", value)


def whole_number(where: str, value: Any, most: int = 2**53) -> int:
    """The value, where it is a whole number from 0 to `most`; else TrainingError."""
    if type(value) is not int or not 0 <= value <= most:
        raise TrainingError(
            f"{where} is {short_repr(value)}, expected a whole number, 0 to {most}."
        )
    return value


def short_repr(value: Any) -> str:
    """The beginning of a value, for messages."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"  # which Python does not write out
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


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
            f"{path.name}: cannot be read ({short_repr(str(error))}), expected a safetensors file."
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
        return {**json.loads(text)}
    except (TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path.name}: its notes are no JSON object ({error}).") from error


def check_same_tensors(
    where: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raises TrainingError where names, shapes or precisions differ."""
    missing = [short_repr(name) for name in sorted(set(expected) - set(tensors))]
    unknown = [short_repr(name) for name in sorted(set(tensors) - set(expected))]
    other = [
        f"{name} is {each.dtype} {short_repr(list(each.shape))}, expected {expected[name].dtype} "
        f"{list(expected[name].shape)}"
        for name, each in tensors.items()
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
