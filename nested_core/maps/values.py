"""The paper's picture of a query-dependent value: its first three principal components as colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from ..shapes import Float

_COMPONENTS = 3

# Directions iterated on together, and how often. More directions than are wanted make the wanted
# ones converge by the gap to the ninth variance, not to the fourth.
_DIRECTIONS = 8
_ROUNDS = 3

# A component whose standard deviation is this small beside the values' length is rounding, not a
# picture.
_NOISE = 1e-4


@dataclass(frozen=True, eq=False)
class ValuePicture:
    """u(q) of one site in its own first three principal components; on the CPU, in float16.

    Attributes:
        colours: one point per pixel, around zero.
        flat: the text value V[s] in the same coordinates: what each pixel gets without nested
            attention.
        explained: the share of the pixels' variation that the three components show.
    """

    colours: Float[Tensor, "height width 3"]
    flat: Float[Tensor, " 3"]
    explained: float


def value_picture(
    values: Float[Tensor, "heads pixels head_dim"],
    text_value: Float[Tensor, "heads 1 head_dim"],
    grid: tuple[int, int],
) -> ValuePicture:
    """The values of all pixels as three coordinates each. Computed on the values' device.

    Repeatable: no random state of torch is read or changed, and the signs are fixed. Values that
    are the same at every pixel have no components and give zeros.

    Args:
        values: u(q), after value norm, strength and region.
        text_value: V[s].
        grid: height and width of the site.
    """
    points = rearrange(values.float(), "heads pixels dim -> pixels (heads dim)")
    text_point = rearrange(text_value.float(), "heads 1 dim -> (heads dim)")
    mean = points.mean(dim=0)
    centred = points - mean
    axes, variances = _principal_axes(centred)
    length = points.square().sum(dim=1).mean().cpu()
    total = centred.square().sum(dim=1).mean().cpu()
    visible = variances > _NOISE**2 * length
    axes = axes * visible.to(axes)
    shown = variances[visible].sum()
    return ValuePicture(
        colours=(centred @ axes).view(*grid, _COMPONENTS).cpu().half(),
        flat=((text_point - mean) @ axes).cpu().half(),
        explained=float((shown / total).clamp(0, 1)) if visible.any() else 0.0,
    )


def _principal_axes(
    centred: Float[Tensor, "pixels channels"],
) -> tuple[Float[Tensor, "channels 3"], Float[Tensor, " 3"]]:
    """Unit vectors of the largest variances, and those variances on the CPU; zeros where missing.

    Subspace iteration from a fixed start: only a thin matrix is multiplied, never the covariance
    of 1280 channels made.
    """
    pixels, channels = centred.shape
    width = min(_DIRECTIONS, channels)
    start = torch.randn(channels, width, generator=torch.Generator().manual_seed(0))
    basis = start.to(centred)
    for _ in range(_ROUNDS):
        # Twice before making the directions orthonormal, which is what takes time on a GPU.
        for _ in range(2):
            basis = centred.mT @ (centred @ basis) / pixels
        basis = _orthonormal(basis)
    seen = centred @ basis
    # The small problem is solved on the CPU: devices differ in how they order and sign it.
    found, turns = _spectrum((seen.mT @ seen / pixels).cpu().double())
    count = min(_COMPONENTS, width)
    axes = torch.zeros(channels, _COMPONENTS).to(centred)
    axes[:, :count] = _with_fixed_signs(basis @ turns[:, :count].to(centred))
    variances = torch.zeros(_COMPONENTS)
    variances[:count] = found[:count].clamp_min(0).float()
    return axes, variances


def _orthonormal(columns: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.qr(columns).Q)  # pyright: ignore[reportUnknownMemberType]


def _spectrum(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and their eigenvectors as columns."""
    spectrum = cast(tuple[Tensor, Tensor], torch.linalg.eigh(symmetric))  # pyright: ignore[reportUnknownMemberType]
    return spectrum[0].flip(0), spectrum[1].flip(1)


def _with_fixed_signs(
    axes: Float[Tensor, "channels components"],
) -> Float[Tensor, "channels components"]:
    """Each axis in the direction of its large entries, so that pictures of two steps compare.

    By the sum of cubes, not by the largest entry: two entries of nearly equal size would let the
    sign jump from step to step.
    """
    return axes * torch.where(axes.pow(3).sum(dim=0) < 0, -1.0, 1.0)
