"""Keeping subjects apart: at each pixel they compete, by what the attention layers have shown so far.

A pixel that attends to two subjects' tokens is given a mixture of their values, and the two people
of a picture grow alike. Holding the weaker one back would not do: its share of attention would fall
to its noun, and the picture to nobody in particular. So at a pixel of Anna's, *every* competing
token offers Anna's value (`replacement_delta`), and who owns which pixel is found from the maps
A_s. Nobody paints a mask.

Our own construction; the paper (arXiv:2501.01407) names the overlap of maps and not its remedy.
`docs/evaluation.md` has what it is worth and what did not help.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .shapes import Bool, Float

# --- The constants, all of them, and why each is there. They were chosen on scenes of the tiny world
# (docs/evaluation.md); docs/separation.md explains the method around them.

# How much of what was known is kept when a step has shown more. Who stands where is decided early,
# and the leads that the maps show often shrink in later steps.
MEMORY = 0.9

# The standard deviation of the Gaussians, as a share of the picture's side, divided by the number of
# subjects: neighbouring pixels belong together, and the more subjects share a picture, the closer
# they stand.
_BLUR_OF_ONE = 0.6

# How far the tall Gaussian reaches up and down, as a share of the height. Head and feet are of one
# person, so what lies above and below counts together.
_HEIGHT = 1.0

# The weight of the round Gaussian beside the tall one. It is there for subjects above one another.
_ROUND = 0.3

# How much more a pixel counts that attends to somebody: a factor of e to this for each deviation.
# What the sky thinks of two people should not decide between them.
_PRESENCE = 1.0

# How fast a lead in the blurred maps becomes ownership. It is high because a pixel that is shared
# between two owners is again a mixture of both.
_SHARPNESS = 200.0

# The lead in the logarithm of attention at which a pixel counts as decided, for the subject that owns
# its neighbourhood and for another one. The second is lower: where a pixel disagrees with its
# neighbourhood, two people touch, and attention knows better than a blur.
_DECIDED, _DECIDED_OTHERWISE = 0.7, 0.3

# A pixel that attends to no subject at all has no logarithm; it gets that of this.
SMALLEST = 1e-6

# A map whose deviation is below this is flat: what is left is rounding.
_FLAT = 1e-3

# Masks that fill a pixel to the brim do not overlap there, whatever rounding says.
_ROUNDING = 1e-4

# --- From maps to owners.


def contrast(seen: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """The logarithm of a map against its own (geometric) mean.

    How much attention a token gets in all differs a hundredfold between layers and says nothing
    about where its subject is; where it gets more than elsewhere does.
    """
    logarithm = seen.float().clamp_min(SMALLEST).log()
    return logarithm - logarithm.mean(dim=(-2, -1), keepdim=True)


def comparability(
    seen: Float[Tensor, "*batch subjects height width"],
) -> Float[Tensor, "*batch 1 1 1"]:
    """How much a layer has to say about who is where: the root of the attention that all get there.

    A map of a token that is next to never looked at is all contrast and no news.
    """
    return seen.float().mean(dim=(-2, -1), keepdim=True).amin(dim=-3, keepdim=True).sqrt()


def ownership(
    evidence: Float[Tensor, "*batch subjects height width"],
    masks: Sequence[Float[Tensor, "*batch height width"] | None] | None = None,
) -> tuple[Float[Tensor, "*batch subjects height width"], Float[Tensor, "*batch 1 height width"]]:
    """Whose each pixel is, and how far that is open; see `shares` and `contested`.

    Masks win over what was found. Where they leave room, the subjects without one divide it; where
    they overlap, the subjects that claim the pixel do.

    Args:
        evidence: of every subject, the mean of `contrast` over sites and steps.
        masks: one per subject, in [0, 1], or None; nobody has one unless given.
    """
    if masks is None or all(mask is None for mask in masks):
        divided = shares(evidence)
        return divided, contested(evidence, divided)
    nothing = torch.zeros_like(evidence[..., 0, :, :])
    painted = torch.stack([nothing if mask is None else mask for mask in masks], dim=-3)
    free = torch.tensor([mask is None for mask in masks], device=painted.device).view(-1, 1, 1)
    excess = (painted.sum(dim=-3, keepdim=True) - 1.0).clamp_min(0.0)
    crowded = excess > _ROUNDING
    certain = (painted - excess).clamp_min(0.0)  # what nobody else claims
    rest = 1.0 - certain.sum(dim=-3, keepdim=True)
    divide_it = torch.where(crowded, painted > 0, free)
    divided = shares(evidence, divide_it)
    # What the user painted is not for the maps to doubt.
    rivals = evidence.masked_fill(~divide_it, -torch.inf)
    doubtful = torch.where(crowded, rest * (1.0 - contested(rivals, divided)), 0.0)
    return certain + rest * divided, 1.0 - doubtful


def shares(
    evidence: Float[Tensor, "*batch subjects height width"],
    among: Bool[Tensor, "*batch subjects height width"] | None = None,
) -> Float[Tensor, "*batch subjects height width"]:
    """Whose each pixel is; the shares of a pixel sum to 1, or to 0 where nobody may have it.

    Args:
        evidence: of every subject, the mean of `contrast` over sites and steps.
        among: which subjects may have a pixel; all unless given.
    """
    subjects, height, width = evidence.shape[-3:]
    # A word whose map is all peaks would leave the plains to one whose map is flat.
    deviation = evidence.std(dim=(-2, -1), correction=0, keepdim=True).clamp_min(_FLAT)
    centred = (evidence - evidence.mean(dim=(-2, -1), keepdim=True)) / deviation
    # What the sky thinks of the two does not count: pixels weigh by how much they attend to anyone.
    strongest = centred.amax(dim=-3, keepdim=True)
    present = (_PRESENCE * (strongest - strongest.amax(dim=(-2, -1), keepdim=True))).exp()
    blur = _BLUR_OF_ONE / subjects
    tall, down = (_blur_matrix(height, each, evidence.device) for each in (_HEIGHT, blur))
    across = _blur_matrix(width, blur, evidence.device)
    lead = _level_blur(centred, present, tall, across)
    lead = _SHARPNESS * (lead + _ROUND * _level_blur(centred, present, down, across))
    if among is None:
        return lead.softmax(dim=-3)
    # Before the softmax: behind it, a pixel of the others' has nothing left to divide.
    return lead.masked_fill(~among, -torch.inf).softmax(dim=-3).nan_to_num(0.0)


def contested(
    evidence: Float[Tensor, "*batch subjects height width"],
    divided: Float[Tensor, "*batch subjects height width"],
) -> Float[Tensor, "*batch 1 height width"]:
    """Where it is open whose a pixel is: 1 where two subjects are level, near 0 where one leads.

    A pixel that already knows whom it listens to is left alone: ownership has hard edges, and
    attention knows better where two people touch. Sooner so where it does not listen to its owner.

    Args:
        divided: the `shares` of this evidence.
    """
    best = evidence.topk(2, dim=-3).values
    first, second = best[..., :1, :, :], best[..., 1:, :, :]
    lead = torch.where(evidence == first, evidence - second, evidence - first)
    decided = torch.where(lead > 0, _DECIDED, _DECIDED_OTHERWISE)
    return (divided * torch.exp(-((lead / decided) ** 4))).sum(dim=-3, keepdim=True)


def _level_blur(maps: Tensor, present: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The maps, blurred over pixels by how much they count, around their mean over these.

    Two are level where they are on average where somebody is, not in a picture that is mostly sky: a
    word that reaches a little further would else be given both of them.

    Args:
        down, across: what blurs columns and rows, of `_blur_matrix`.
    """
    weight = (down @ present @ across.mT).clamp_min(SMALLEST)
    blurred = (down @ (maps * present) @ across.mT) / weight
    total = (blurred * present).sum(dim=(-2, -1), keepdim=True)
    return blurred - total / present.sum(dim=(-2, -1), keepdim=True)


def _blur_matrix(size: int, deviation: float, device: torch.device) -> Tensor:
    positions = torch.arange(size, dtype=torch.float32, device=device)
    distances = (positions[:, None] - positions) / (deviation * size)
    weights = torch.exp(-0.5 * distances.square())
    return weights / weights.sum(dim=1, keepdim=True)
