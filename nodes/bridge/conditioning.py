"""What travels with a conditioning: which text positions are bound, and where subjects may act.

Both ride in `model_conds`, so that ComfyUI batches, repeats and splits them together with the text
context, and slots and tokens cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.conds
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

SLOTS_KEY = "nested_attention"
REGIONS_KEY = "nested_attention_regions"
PLACES_KEY = "nested_attention_places"

Conditioning = Mapping[str, Any]


class SlotMap(comfy.conds.CONDCrossAttn):
    """int32 `[1, text_tokens, 1]` on the CPU: 0 is the host's, else the id of a binding.

    Being a cross-attention conditioning, it is repeated to the same least common multiple of
    lengths as the text context that it describes.
    """

    @property
    def ids(self) -> set[int]:
        """The bindings that this prompt contains."""
        return set(self.cond.unique().tolist()) - {0}

    def fitted(self, num_tokens: int) -> SlotMap:
        """For a context that another node made longer or shorter behind these tokens."""
        length = self.cond.shape[1]
        if length == num_tokens:
            return self
        return SlotMap(functional.pad(self.cond, (0, 0, 0, num_tokens - length)))

    @classmethod
    def empty(cls, num_tokens: int) -> SlotMap:
        """The map of a prompt without bound tokens."""
        return cls(torch.zeros(1, num_tokens, 1, dtype=torch.int32))


class RegionMaps(comfy.conds.CONDRegular):
    """The masks of all masked bindings, each `[pictures, 1, height, width]` in image coordinates.

    With an area they are cropped as ComfyUI crops `CONDNoiseShape`: only the crop's shape is
    visible inside the model. `latent_size` is the height and width that areas are measured in.
    """

    def __init__(self, cond: Sequence[Tensor], latent_size: tuple[int, int]) -> None:
        super().__init__(cond)
        self.latent_size = latent_size

    def process_cond(self, batch_size: int, area: Sequence[int] | None, **_: Any) -> RegionMaps:
        masks = self.cond if area is None else [self._cropped(mask, area) for mask in self.cond]
        masks = [comfy.utils.repeat_to_batch_size(mask, batch_size) for mask in masks]
        return RegionMaps(masks, self.latent_size)

    def _cropped(self, mask: Tensor, area: Sequence[int]) -> Tensor:
        height, width, top, left = area[:4]
        if any(have % want for have, want in zip(mask.shape[2:], self.latent_size, strict=True)):
            mask = functional.interpolate(mask, size=self.latent_size, mode="area")
        down, across = mask.shape[2] // self.latent_size[0], mask.shape[3] // self.latent_size[1]
        mask = mask.narrow(2, top * down, height * down)
        return mask.narrow(3, left * across, width * across)

    def can_concat(self, other: RegionMaps) -> bool:
        return self._shapes() == other._shapes()

    def concat(self, others: Iterable[RegionMaps]) -> list[Tensor]:
        parts = zip(self.cond, *(other.cond for other in others), strict=True)
        return [torch.cat(masks) for masks in parts]

    def size(self) -> list[int]:
        return [sum(mask.numel() for mask in self.cond)]

    def _shapes(self) -> list[torch.Size]:
        return [mask.shape for mask in self.cond]


class Place(NamedTuple):
    """Where a row of the batch lies, in latent cells.

    Attributes:
        picture: of the batch.
        conditioning: a number of its prompt's own, the same at every step.
        top, left, height, width: its area; without one, the whole picture.
    """

    picture: int
    conditioning: int
    top: int
    left: int
    height: int
    width: int
    picture_height: int
    picture_width: int


class PlaceMap(comfy.conds.CONDRegular):
    """The `Place` of each row, int32 `[rows, 8]` on the CPU.

    Inside the model nothing else tells which row is part of which picture and prompt.
    """

    def __init__(self, cond: Tensor, latent_size: tuple[int, int]) -> None:
        super().__init__(cond)
        self.latent_size = latent_size

    @classmethod
    def of_conditioning(cls, number: int, latent_size: tuple[int, int]) -> PlaceMap:
        """Before any batch is known: one row that says whose it is."""
        return cls(torch.tensor([[number]], dtype=torch.int32), latent_size)

    def process_cond(self, batch_size: int, area: Sequence[int] | None, **_: Any) -> PlaceMap:
        number = int(self.cond[0, 0])
        height, width, top, left = (*self.latent_size, 0, 0) if area is None else area[:4]
        where = (number, top, left, height, width, *self.latent_size)
        rows = [(picture, *where) for picture in range(batch_size)]
        return PlaceMap(torch.tensor(rows, dtype=torch.int32), self.latent_size)


def slot_map_of(conditioning: Conditioning) -> SlotMap | None:
    """The slot map of a conditioning, if a text encoder of ours made it."""
    return conditioning.get("model_conds", {}).get(SLOTS_KEY)


def bound_ids(conditionings: Iterable[Conditioning]) -> set[int]:
    """The bindings that these conditionings mention."""
    maps = (slot_map_of(conditioning) for conditioning in conditionings)
    return set().union(*(found.ids for found in maps if found is not None))


def with_slots(
    conditioning: dict[str, Any],
    number: int,
    region_masks: Sequence[Tensor],
    latent_size: tuple[int, int],
) -> dict[str, Any]:
    """A copy whose map fits its context, so that it can be batched with the others of this call.

    ComfyUI never batches conditionings of different keys: one without a map gets an empty one.

    Args:
        number: of the conditioning, its own and the same at every step.
    """
    model_conds = conditioning.get("model_conds", {})
    context = model_conds.get("c_crossattn")
    if context is None:
        return conditioning
    num_tokens = context.cond.shape[1]
    slots = model_conds.get(SLOTS_KEY)
    if slots is None or _is_zeroed(context):
        slots = SlotMap.empty(num_tokens)
    added: dict[str, Any] = {
        SLOTS_KEY: slots.fitted(num_tokens),
        PLACES_KEY: PlaceMap.of_conditioning(number, latent_size),
    }
    if region_masks:
        added[REGIONS_KEY] = RegionMaps(region_masks, latent_size)
    return {**conditioning, "model_conds": {**model_conds, **added}}


# Looking at a context's numbers may wait for the device: once per conditioning, not per step.
_zeroed: WeakKeyDictionary[comfy.conds.CONDRegular, bool] = WeakKeyDictionary()


def _is_zeroed(context: comfy.conds.CONDRegular) -> bool:
    """Whether ConditioningZeroOut emptied the prompt; it leaves the map behind."""
    if context not in _zeroed:
        _zeroed[context] = not bool(context.cond.any())
    return _zeroed[context]
