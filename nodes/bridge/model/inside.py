"""What another pack does to a planned call where the UNet itself is called, behind ComfyUI's back.

Wrappers around the UNet cut its input into tiles, move it or change the order of its rows. What they
pass on is compared with what they were given, as in front of the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....nested_core.call.arrival import Arrival
from ....nested_core.call.content import Cut, where_cut
from ....nested_core.call.places import Place, cropped
from ..families.model_call import ModelCall
from ..names import is_hosts
from ..wrappers import wrappers_of


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A call of the UNet as it was planned.

    Attributes:
        latent, noise_level, context: what the model was given, of a row each.
        arrival: what is known of these rows.
    """

    call: ModelCall
    base_model: Any
    latent: Tensor
    noise_level: Tensor
    context: Tensor | None
    arrival: Arrival

    def __deepcopy__(self, memo: dict[int, Any]) -> PlannedRun:
        return self  # as the call's

    def arrival_of(self, x: Tensor, context: Tensor | None) -> Arrival | None:
        """What is known of the rows that the UNet itself is given; the same object where all is as planned.

        None where their texts are new ones.
        """
        given = self.base_model.model_sampling.calculate_input(self.noise_level, self.latent)
        x, given = x[:, : given.shape[1]], given.to(x)  # behind them inpainting models have more
        is_same = x.shape == given.shape and torch.equal(x, given)
        if context is None or self.context is None or len(context) < len(x):
            return self.arrival if is_same else None
        planned = self.context.to(context)
        if is_same and torch.equal(context[: len(x)], planned):  # some put more texts behind them
            return self.arrival
        found = self._moved(x, given, context, planned)
        return self.arrival if is_same and found is None else found

    def _moved(self, x: Tensor, given: Tensor, context: Tensor, planned: Tensor) -> Arrival | None:
        slots: list[tuple[int, ...]] = []
        boxes: list[tuple[Place, Cut] | None] = []
        cuts = where_cut(given, x)
        for row in range(len(x)):
            reading = [
                number for number, text in enumerate(planned) if torch.equal(text, context[row])
            ]
            if len({self.arrival.slots[number] for number in reading}) != 1:
                return None
            slots.append(self.arrival.slots[reading[0]])
            boxes.append(self._box([cut for cut in cuts[row] if cut[0] in reading], x))
        known = [each for each in boxes if each is not None]
        if len(known) < len(boxes) or self.arrival.masks is None:
            return Arrival(tuple(slots), None, None)
        size = (given.shape[-2], given.shape[-1])
        masks = tuple(
            torch.cat(
                [
                    cropped(mask[[number]], size, (place.height, place.width, top, left))
                    for place, (number, top, left) in known
                ]
            )
            for mask in self.arrival.masks
        )
        return Arrival(tuple(slots), tuple(place for place, _ in known), masks)

    def _box(self, cuts: list[Cut], x: Tensor) -> tuple[Place, Cut] | None:
        """Where a row lies, and how it is cut out of a planned row; None where that is open."""
        height, width = x.shape[-2:]
        found: dict[Place, Cut] = {}
        for number, top, left in cuts:
            whole = self.arrival.places[number] if self.arrival.places is not None else None
            if whole is None:
                return None
            if (height, width) != (whole.height, whole.width):
                if whole.window:
                    return None
                whole = whole._replace(
                    top=whole.top + top, left=whole.left + left, height=height, width=width
                )
            found[whole] = (number, top, left)
        return next(iter(found.items())) if len(found) == 1 else None


def is_wrapped(base_model: Any, options: Mapping[str, Any]) -> bool:
    """Whether another pack stands around the UNet itself."""
    wrappers = wrappers_of(options, WrappersMP.DIFFUSION_MODEL)
    return any(wrappers.values()) or not is_hosts(base_model.diffusion_model.forward)
