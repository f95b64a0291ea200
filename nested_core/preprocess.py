"""Photographs on their way to the image encoder: masked, cropped to a square, resized, normalised.

One implementation for training and for hosts. `clip_pixels` equals ComfyUI's own preprocessing of
CLIP vision inputs (antialiased bicubic on float tensors, then rounding to 8 bits), which differs
from transformers' image processor.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .errors import SubjectError
from .shapes import Float

CropMode = Literal["center", "pad", "subject"]

# Mean and standard deviation of CLIP's training pictures, by channel (OpenAI's release).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The subject's box grows by this share of its longer side on every side.
_SUBJECT_MARGIN = 0.1


def rgb_images(image_bhwc: Tensor) -> Float[Tensor, "references height width 3"]:
    """The pictures as three channels: grey is repeated, alpha is dropped as ComfyUI does.

    Raises:
        SubjectError: no picture, or a shape that is no picture.
    """
    if image_bhwc.ndim != 4 or image_bhwc.shape[-1] not in (1, 3, 4):
        raise SubjectError(
            f"Encode Subject: the image has the shape {tuple(image_bhwc.shape)}, expected "
            "[pictures, height, width, channels] with 1, 3 or 4 channels. Connect an IMAGE output."
        )
    if image_bhwc.numel() == 0:
        raise SubjectError(
            f"Encode Subject: the image batch is empty (shape {tuple(image_bhwc.shape)}). "
            "Connect at least one photograph of the subject."
        )
    image_bhwc = image_bhwc.float()
    if image_bhwc.shape[-1] == 1:
        return image_bhwc.expand(-1, -1, -1, 3)
    return image_bhwc[..., :3]


def square_photographs(
    image_bhwc: Float[Tensor, "references height width 3"],
    mask: Tensor | None,
    crop: CropMode,
) -> list[Float[Tensor, "1 height width 3"]]:
    """Each reference as `crop` asks, with everything outside the mask in CLIP's mean colour.

    `center` leaves the picture's shape: the image encoder crops its centre square. `pad` adds
    borders of the mean colour. `subject` cuts out the mask's box, made square with a margin of 10 %.

    Raises:
        SubjectError: crop mode unknown, no or an empty mask for `subject`, masks that do not match.
    """
    masks = _masks_like(image_bhwc, mask)
    if crop not in ("center", "pad", "subject"):
        raise SubjectError(f"Encode Subject: crop is '{crop}', expected center, pad or subject.")
    if crop == "subject" and masks is None:
        raise SubjectError(
            "Encode Subject: crop 'subject' cuts out the mask's box, but no mask is connected. "
            "Connect a mask of the subject, or choose the crop 'center' or 'pad'."
        )
    photographs: list[Tensor] = []
    for index, picture in enumerate(image_bhwc):
        if masks is not None:
            picture = torch.lerp(_mean_colour(picture), picture, masks[index, :, :, None])
        if crop == "pad":
            picture = _window(picture, *_padded_square(picture))
        if crop == "subject" and masks is not None:
            picture = _window(picture, *_subject_square(masks[index], index))
        photographs.append(picture[None])
    return photographs


def clip_pixels(
    image_bhwc: Float[Tensor, "batch height width 3"], size: int
) -> Float[Tensor, "batch 3 {size} {size}"]:
    """The centre square at `size` pixels, in 8-bit steps, normalised with CLIP's mean and deviation."""
    pixels = clip_square(image_bhwc, size).movedim(-1, 1)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def clip_square(
    image_bhwc: Float[Tensor, "batch height width 3"], size: int
) -> Float[Tensor, "batch {size} {size} 3"]:
    """The centre square at `size` pixels, in 8-bit steps; applied twice it changes nothing more."""
    pixels = image_bhwc.movedim(-1, 1)
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        factor = size / min(height, width)
        target = [round(factor * height), round(factor * width)]
        pixels = functional.interpolate(pixels, size=target, mode="bicubic", antialias=True)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        pixels = pixels[:, :, top : top + size, left : left + size]
    return ((255.0 * pixels).clip(0, 255).round() / 255.0).movedim(1, -1)


def _masks_like(image_bhwc: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask per reference at the pictures' size, in [0, 1]."""
    if mask is None:
        return None
    masks = mask[None] if mask.ndim == 2 else mask
    if masks.ndim != 3 or masks.numel() == 0 or len(masks) not in (1, len(image_bhwc)):
        raise SubjectError(
            f"Encode Subject: the mask has the shape {tuple(mask.shape)}, expected [1 or "
            f"{len(image_bhwc)}, height, width] for {len(image_bhwc)} reference image(s). "
            "Connect one mask for all references or one for each."
        )
    masks = masks.to(image_bhwc)
    if masks.shape[1:] != image_bhwc.shape[1:3]:
        masks = functional.interpolate(
            masks[:, None], size=image_bhwc.shape[1:3], mode="bilinear", antialias=True
        )[:, 0]
    return masks.clamp(0, 1).expand(len(image_bhwc), -1, -1)


def _mean_colour(picture: Tensor) -> Tensor:
    return picture.new_tensor(CLIP_MEAN).expand_as(picture)


def _padded_square(picture: Tensor) -> tuple[int, int, int]:
    height, width = picture.shape[:2]
    side = max(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _subject_square(mask: Tensor, index: int) -> tuple[int, int, int]:
    """Top, left and side of the box around the mask, square, with its margin."""
    inside = mask > 0.5
    if not bool(inside.any()):
        raise SubjectError(
            f"Encode Subject: the mask of reference {index + 1} is empty, so there is no subject to "
            "cut out. Paint the subject in the mask, or choose the crop 'center' or 'pad'."
        )
    rows, columns = (inside.any(dim=dim).nonzero() for dim in (1, 0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(bottom - top, right - left)
    side = longer + 2 * round(_SUBJECT_MARGIN * longer)
    return (top + bottom - side) // 2, (left + right - side) // 2, side


def _window(picture: Tensor, top: int, left: int, side: int) -> Tensor:
    """A square window that may reach beyond the picture; there it is the mean colour."""
    height, width = picture.shape[:2]
    window = picture.new_tensor(CLIP_MEAN).repeat(side, side, 1)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, height), min(left + side, width)
    window[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    return window
