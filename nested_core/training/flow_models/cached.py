"""Captions and pictures encoded once, and read from the disk ever after.

Text encoders and VAE are loaded where something is missing, and only then; they may be let go again.
Each row is encoded alone, so what it is does not depend on what else was missing with it: a run that
goes on reads, or makes again, what the run that never stopped has read.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..base_model import Caption, TextConditions
from ..disk_cache import DiskCache, key_of, key_of_tensor
from .description import CELL
from .encoding import VAE_DTYPE, Encoding
from .texts import stack_texts

Part = Literal["texts", "pictures"]
_FORMAT = "1"  # of the entries
_EXTRA = "extra."

log = logging.getLogger(__name__)


class CachedEncoding:
    """An `Encoding` whose answers are kept.

    Args:
        load: text encoders or VAE, on the CPU.
        digests: of each, for the keys.
        dtype: in which the text encoders run.
    """

    def __init__(
        self,
        cache: DiskCache,
        load: Callable[[Part], Encoding],
        digests: Mapping[Part, str],
        dtype: torch.dtype,
    ) -> None:
        self.cache, self.digests, self.dtype = cache, digests, dtype
        self._load, self._loaded = load, dict[Part, Encoding]()
        self._device = torch.device("cpu")

    def modules(self) -> Sequence[nn.Module]:
        return [module for each in self._loaded.values() for module in each.modules()]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self.dtype = device, dtype
        for each in self._loaded.values():
            each.place(device, dtype)

    def release(self) -> None:
        """Lets go of whatever was loaded."""
        self._loaded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _part(self, part: Part) -> Encoding:
        if part not in self._loaded:
            log.info("loading what encodes %s", part)
            self._loaded[part] = self._load(part)
            self._loaded[part].place(self._device, self.dtype)
        return self._loaded[part]

    def text_key(self, caption: Caption) -> str:
        return key_of(_FORMAT, self.digests["texts"], str(self.dtype), caption.text, caption.noun)

    def picture_key(self, pixels: Tensor) -> str:
        """Of one picture, `[1, 3, height, width]`."""
        return key_of(_FORMAT, self.digests["pictures"], str(VAE_DTYPE), key_of_tensor(pixels))

    def texts(self, captions: Sequence[Caption]) -> TextConditions:
        rows = [self._text(caption) for caption in captions]
        return stack_texts([_to(row, self._device) for row in rows])

    def _text(self, caption: Caption) -> TextConditions:
        key = self.text_key(caption)
        kept = self.cache.read("texts", key, _is_text)
        return self._encode_text(key, caption) if kept is None else _text_of(kept)

    def _encode_text(self, key: str, caption: Caption) -> TextConditions:
        row = self._part("texts").texts([caption])
        self.cache.write("texts", key, _tensors_of(row))
        return row

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        rows = [self._posterior(row[None]) for row in pixels]
        means, deviations = zip(*rows, strict=True)
        return torch.cat(means).to(self._device), torch.cat(deviations).to(self._device)

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        key = self.picture_key(pixels)
        height, width = pixels.shape[-2] // CELL, pixels.shape[-1] // CELL
        kept = self.cache.read("pictures", key, lambda each: _is_picture(each, height, width))
        if kept is None:
            return self._encode_picture(key, pixels)
        return kept["mean"], kept["deviation"]

    def _encode_picture(self, key: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (each.cpu() for each in self._part("pictures").posterior(pixels))
        self.cache.write("pictures", key, {"mean": mean, "deviation": deviation})
        return mean, deviation

    def decode(self, latents: Tensor) -> Tensor:
        return self._part("pictures").decode(latents)

    def keep_text(self, caption: Caption) -> bool:
        """Makes the entry where it is missing: whether it was."""
        key = self.text_key(caption)
        is_missing = not self.cache.holds("texts", key)
        if is_missing:
            self._encode_text(key, caption)
        return is_missing

    def keep_picture(self, pixels: Tensor) -> bool:
        """The same for one picture, `[3, height, width]`."""
        key = self.picture_key(pixels[None])
        is_missing = not self.cache.holds("pictures", key)
        if is_missing:
            self._encode_picture(key, pixels[None])
        return is_missing


def _to(row: TextConditions, device: torch.device) -> TextConditions:
    extras = {name: each.to(device) for name, each in row.extras.items()}
    return TextConditions(row.context.to(device), row.positions.to(device), extras)


def _tensors_of(row: TextConditions) -> dict[str, Tensor]:
    extras = {_EXTRA + name: each for name, each in row.extras.items()}
    return {"context": row.context, "positions": row.positions, **extras}


def _text_of(tensors: Mapping[str, Tensor]) -> TextConditions:
    extras = {
        name.removeprefix(_EXTRA): each for name, each in tensors.items() if name.startswith(_EXTRA)
    }
    return TextConditions(tensors["context"], tensors["positions"], extras)


def _is_text(tensors: Mapping[str, Tensor]) -> bool:
    context, positions = tensors.get("context"), tensors.get("positions")
    if context is None or positions is None or context.ndim != 3 or positions.ndim != 2:
        return False
    is_inside = bool(((positions >= -1) & (positions < context.shape[1])).all())
    return is_inside and all(len(each) == 1 for each in tensors.values() if each.ndim)


def _is_picture(tensors: Mapping[str, Tensor], height: int, width: int) -> bool:
    mean, deviation = tensors.get("mean"), tensors.get("deviation")
    return (
        mean is not None
        and deviation is not None
        and mean.ndim == 4
        and mean.shape == deviation.shape
        and (len(mean), *mean.shape[-2:]) == (1, height, width)
    )
