"""Files of a run's folder: written whole or not at all, read without trusting them.

Every failure is one sentence. Where several processes take part, what fails in one ends all.
"""

# accelerate is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from ..errors import NestedAttentionError
from .errors import TrainingError

UNFINISHED = ".unfinished"
_MOST_JSON_BYTES = 100_000_000
_LONGEST_SHOWN = 80


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
            _remove_quietly(temporary)
            raise


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # what went wrong before is what the user has to hear


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        TrainingError: missing, no plain file, too long, or no JSON object.
    """
    expected = "expected the JSON object that this trainer writes"
    if not path.is_file():
        found = "is no file" if path.exists() else "is missing"
        raise TrainingError(f"{path.name}: {found}, {expected}.")
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"more than {_MOST_JSON_BYTES:,} bytes")
        value: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path.name}: cannot be read ({error}), {expected}.") from error
    if not isinstance(value, dict):
        raise TrainingError(f"{path.name}: holds {shown(value)}, {expected}.")
    return cast("dict[str, Any]", value)


def whole_number(where: str, value: Any, most: int = 2**53) -> int:
    """The value, where it is a whole number from 0 to `most`; else TrainingError."""
    if type(value) is not int or not 0 <= value <= most:
        raise TrainingError(f"{where} is {shown(value)}, expected a whole number, 0 to {most}.")
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"  # which Python does not write out
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def together(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Runs `action` in every process. Where it fails in one, all raise that one's error.

    Else the others would wait, for ever, for one that has ended.
    """
    message = ""
    try:
        action()
    except (NestedAttentionError, OSError) as error:
        message = str(error)
    messages: list[str] = gather_object([message])
    for each in messages:
        if each:
            raise TrainingError(each)
