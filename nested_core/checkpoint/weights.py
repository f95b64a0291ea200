"""Weights out of and into safetensors files.

Tensors are copied out of a file, not mapped: a file that is replaced or cut off while its tensors
are in use then harms nobody, and Windows lets it be replaced. A file is written beside the old one
and takes its place when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..precision import WEIGHT_DTYPES, dtype_name
from .safetensors_file import AGAIN, Header, TensorSpec, file_key, open_file
from .writing import complete_file


def read_weights(header: Header, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors on the CPU, in the file's own precision.

    Raises:
        CheckpointError: not a floating type that weights may have, NaN or infinite values, or the
            file is no longer the one whose header was read.
    """
    names = list(names)
    check_weight_dtypes(header.where, {name: header.tensors[name].dtype for name in names})
    with open_file(header.path) as file:
        if file_key(header.path, file) != header.file_key:
            raise CheckpointError(
                f"{header.where}: was replaced while it was read. Load it again once it is written."
            )
        weights = {name: _read_tensor(header, file, header.tensors[name]) for name in names}
    check_finite(header.where, weights)
    return weights


def write_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a file that `read_weights` accepts; until it is complete, an older one stays in place.

    The same tensors and metadata give the same bytes.

    Raises:
        CheckpointError: tensors that could not be read again, or the disk refuses.
    """
    path = Path(path)
    check_weights(path.name, tensors)
    with complete_file(path, tensors, metadata) as temporary:
        os.replace(temporary, path)


def check_weight_dtypes(where: str, dtypes: Mapping[str, str]) -> None:
    """Raises CheckpointError where a tensor's precision is none that weights may have."""
    wrong = [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in WEIGHT_DTYPES]
    if wrong:
        raise CheckpointError(
            f"{where}: {listing('tensors of another type', wrong)}; expected "
            f"{', '.join(WEIGHT_DTYPES)}. Save the weights in one of these."
        )


def check_weights(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where `read_weights` would not accept these tensors."""
    check_weight_dtypes(where, {name: dtype_name(tensor) for name, tensor in tensors.items()})
    check_finite(where, tensors)


def check_finite(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the tensors that hold NaN or infinite values."""
    wrong = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise CheckpointError(
            f"{where}: {listing('tensors with NaN or infinite values', wrong)}; expected finite "
            "numbers. The training diverged or the file is damaged: take an earlier copy."
        )


def listing(label: str, names: Iterable[str], limit: int = 8) -> str:
    """`3 LABEL: a, b, c`; of more than `limit` names the first ones."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{len(names)} {label}: {shown}{', ...' if len(names) > limit else ''}"


def _read_tensor(header: Header, file: BinaryIO, spec: TensorSpec) -> Tensor:
    buffer = torch.empty(spec.stop - spec.start, dtype=torch.uint8)
    file.seek(header.data_start + spec.start)
    # A raw read may return less than was asked for; BufferedReader reads to the end or the file's.
    if file.readinto(memoryview(buffer.numpy())) != buffer.numel():  # type: ignore[attr-defined]
        raise CheckpointError(f"{header.where}: was cut off while it was read. {AGAIN}")
    return buffer.view(WEIGHT_DTYPES[spec.dtype]).reshape(spec.shape)
