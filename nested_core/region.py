"""Masks of bindings: those of a video's frames, and where a sampler draws only a part of the picture.

A detailer or a tiled upscaler cuts out a part, samples it as if it was a picture, and puts it back.
The sampler cannot know that, so a mask of the whole picture would be stretched over the part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from .binding import Binding
from .errors import BindingError
from .shapes import Float


def of_frames(
    mask: Float[Tensor, "pictures height width"], num_frames: int
) -> Float[Tensor, "pictures2 frames2 height width"]:
    """A binding's mask as latents of so many frames have it.

    The masks of a video are its frames', for each video of a batch alike. They are as many as the
    latent's frames; or the first one's and as many for each frame behind it, as video models compress
    time; or else they are spread evenly. A still picture has one frame, and masks of pictures.
    """
    if num_frames == 1 or len(mask) == 1:
        return mask[:, None]
    fine, rest = divmod(len(mask) - 1, num_frames - 1)
    if rest == 0 and fine > 0:
        behind = mask[1:].reshape(num_frames - 1, fine, *mask.shape[1:]).mean(dim=1)
        return torch.cat((mask[:1], behind))[None]
    flat = mask.flatten(1).T[None]
    return functional.adaptive_avg_pool1d(flat, num_frames)[0].T.reshape(1, -1, *mask.shape[1:])


def cropped_to(
    bindings: Sequence[Binding],
    region: Float[Tensor, "*pictures height width"],
    padding: int = 0,
) -> tuple[Binding, ...]:
    """The bindings with their masks cut to the box around a region; those without one as they are.

    Masks and region may have different sizes: both show the whole picture.

    Args:
        region: above 0.5 what is drawn, in the whole picture. Of several pictures, the box around
            all of them.
        padding: by how much the box grows on each side, in pixels of the region.

    Raises:
        BindingError: the region is empty.
    """
    inside = region.detach().float().cpu() > 0.5
    inside = inside.reshape(-1, *inside.shape[-2:]).any(dim=0)
    if not bool(inside.any()):
        raise BindingError(
            "Crop Subject Masks: the region is empty, so there is nothing that a sampler could draw. "
            "Connect the mask of the part that it draws, such as the one that the crop was made with."
        )
    sides = [_side(inside.any(dim=dim), padding) for dim in (1, 0)]
    return tuple(_cropped(binding, sides) for binding in bindings)


def _side(inside: Tensor, padding: int) -> tuple[float, float]:
    """First and last edge along one dimension, as parts of the whole."""
    indices, size = inside.nonzero(), len(inside)
    first, last = int(indices[0]) - padding, int(indices[-1]) + 1 + padding
    return max(first, 0) / size, min(last, size) / size


def _cropped(binding: Binding, sides: Sequence[tuple[float, float]]) -> Binding:
    mask = binding.mask
    if mask is None:
        return binding
    for dim, (first, last) in enumerate(sides, start=1):
        size = mask.shape[dim]
        start = min(math.floor(first * size + 1e-6), size - 1)
        stop = max(math.ceil(last * size - 1e-6), start + 1)
        mask = mask.narrow(dim, start, stop - start)
    return replace(binding, mask=mask)
