"""What travels with a conditioning: which text positions are bound, and where subjects may act.

Both ride in `model_conds`, so that ComfyUI batches, repeats and splits them together with the text
context, and slots and tokens cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import comfy.conds
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

from ....nested_core.call.arrival import RowFacts
from ....nested_core.call.places import Frame, Place, cropped
from ..notices import current_run, tell

SLOTS_KEY = "nested_attention"
REGIONS_KEY = "nested_attention_regions"
PLACES_KEY = "nested_attention_places"

Conditioning = Mapping[str, Any]


class CallSlots(comfy.conds.CONDCrossAttn):
    """int32 `[1, text_tokens, 1]` on the CPU: 0 is the host's, else what `Slot` reads.

    Being a cross-attention conditioning, it is repeated to the same least common multiple of
    lengths as the text context that it describes.
    """


class SlotMap(CallSlots):
    """The map as the text encoder hands it out; a bound model exchanges it for one of the call.

    Args:
        names: the tokens of the bindings that it mentions, by id.
        context: of the text as it was encoded, `[1, text_tokens, width]`.
    """

    def __init__(
        self,
        cond: Tensor,
        names: Mapping[int, str] = MappingProxyType({}),
        context: Tensor | None = None,
    ) -> None:
        super().__init__(cond)
        self.names, self.context = names, context

    def _copy_with(self, cond: Tensor) -> SlotMap:
        return SlotMap(cond, self.names, self.context)

    def is_of(self, context: Tensor) -> bool:
        """Whether a context still begins with the text that this map was made for."""
        own = self.context
        if own is None or context is own:
            return True
        begin = context[:, : own.shape[1]]
        if begin.shape == own.shape and torch.equal(begin.to(own), own):
            return True
        return _signs_of_doubled(own, context) is not None

    @property
    def ids(self) -> set[int]:
        """The bindings that this prompt contains."""
        return set(self.cond.abs().unique().tolist()) - {0}

    def fitted(self, context: comfy.conds.CONDRegular) -> CallSlots:
        """For a context that another node doubled, or made longer or shorter behind these tokens."""
        signs = self._signs(context)
        if signs is not None:
            return CallSlots(doubled(self.cond, signs))
        length, num_tokens = self.cond.shape[1], context.cond.shape[1]
        return CallSlots(functional.pad(self.cond, (0, 0, 0, num_tokens - length)))

    def _signs(self, context: comfy.conds.CONDRegular) -> Tensor | None:
        if self.context is None or context.cond.shape[1] != 2 * self.cond.shape[1]:
            return None
        if context not in _doubled:
            _doubled[context] = _signs_of_doubled(self.context, context.cond)
        return _doubled[context]

    def process_cond(self, batch_size: int, **kwargs: Any) -> SlotMap:
        # Nobody exchanged it: the model that samples is not the one that knows the subjects.
        run = current_run()
        if _told.get(self, ()) != run:
            _told[self] = run
            tell(
                f"the prompt contains {', '.join(self.names.values())}, but is sampled with a MODEL that "
                "does not know its subjects, so they do not act. Connect the MODEL output of Apply "
                "Nested Attention to this sampler. (Of two models that are merged, the first one's "
                "subjects are kept: put Apply behind the merge.)",
                [None if run is None else run[1]],
            )
        return super().process_cond(batch_size, **kwargs)


def signs_of_doubled(context: Tensor) -> Tensor | None:
    """Of each token's value, int32 `[text_tokens]` on the CPU, where a context says each token twice.

    Packs for negative weights say it as a key, in the even rows, and then as a value, which may be
    negated. None where a context says something else.
    """
    keys, values = context[:, 0::2], context[:, 1::2]
    if values.shape != keys.shape:
        return None
    same, negated = (values == keys).all(dim=-1), (values == -keys).all(dim=-1)
    return torch.where(same[0], 1, -1).to("cpu", torch.int32) if (same | negated).all() else None


def doubled(slots: Tensor, signs: Tensor) -> Tensor:
    """A map `[1, text_tokens, 1]` for a context that says each token twice, for `read_slots`."""
    return torch.stack([-slots, -slots * signs[None, :, None]], dim=2).flatten(1, 2)


def _signs_of_doubled(own: Tensor, context: Tensor) -> Tensor | None:
    """The same where the tokens are those of the map's own context."""
    keys = context[:, 0::2]
    is_own = keys.shape[1:] == own.shape[1:] and bool((keys == own.to(keys)).all())
    return signs_of_doubled(context) if is_own else None


# Looking at a context's numbers may wait for the device: once per conditioning, not per step.
_doubled: WeakKeyDictionary[comfy.conds.CONDRegular, Tensor | None] = WeakKeyDictionary()

# In which run a map was last found with a strange model, so that each run says so once.
_told: WeakKeyDictionary[SlotMap, Any] = WeakKeyDictionary()


def _box(area: Sequence[int]) -> tuple[int, ...]:
    """Height, width, top and left of ComfyUI's area: its sizes, and where it begins."""
    dims = len(area) // 2
    return (*area[dims - 2 : dims], *area[-2:])


def _frames_of(area: Sequence[int]) -> tuple[int, int | None]:
    """The first frame of a video's area, and the one behind its last."""
    return (area[3], area[3] + area[0]) if len(area) == 6 else (0, None)


class _OfFrame(comfy.conds.CONDRegular):
    """Measured in cells of a frame, the part of the pictures that this call draws."""

    def __init__(self, cond: Any, frame: Frame) -> None:
        super().__init__(cond)
        self.frame = frame

    def _copy_with(self, cond: Any) -> _OfFrame:
        return type(self)(cond, self.frame)


class RegionMaps(_OfFrame, comfy.conds.CONDList):
    """The masks of all masked bindings, each `[pictures, 1 or frames, height, width]` in image coordinates.

    With an area they are cropped as ComfyUI crops `CONDNoiseShape`: only the crop's shape is
    visible inside the model.
    """

    def process_cond(self, batch_size: int, area: Sequence[int] | None, **_: Any) -> RegionMaps:
        masks = [self.frame.of_masks(mask, batch_size) for mask in self.cond]
        if area is not None:
            size, (first, stop) = (self.frame.height, self.frame.width), _frames_of(area)
            masks = [cropped(mask, size, _box(area)) for mask in masks]
            masks = [mask[:, first:stop] if mask.shape[1] > 1 else mask for mask in masks]
        return RegionMaps(masks, self.frame)


class PlaceMap(_OfFrame):
    """The `Place` of each row, int32 `[rows, 10]` on the CPU.

    Inside the model nothing else tells which row is part of which picture and prompt.
    """

    def process_cond(self, batch_size: int, area: Sequence[int] | None, **_: Any) -> PlaceMap:
        frame, number = self.frame, int(self.cond[0, 0])
        if batch_size == frame.num_rows:
            box = (frame.height, frame.width, 0, 0) if area is None else _box(area)
            first = 0 if area is None else _frames_of(area)[0]
            rows = [frame.place(number, row, box, first) for row in range(batch_size)]
        else:  # another pack took some pictures out of the batch, and nobody here knows which
            rows = [Place.unknown(number)] * batch_size
        return PlaceMap(Place.table(rows), frame)


def facts_in(conditions: Mapping[str, Any]) -> RowFacts:
    """What has come here with the rows of a call, among what the model is called with."""
    slots, places = conditions.get(SLOTS_KEY), conditions.get(PLACES_KEY)
    return RowFacts(slots, places, conditions.get(REGIONS_KEY, ()))


def without_facts(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a model that knows nothing of it."""
    ours = (SLOTS_KEY, PLACES_KEY, REGIONS_KEY)
    return {name: each for name, each in conditions.items() if name not in ours}


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
    frame: Frame,
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
    slots = model_conds.get(SLOTS_KEY)
    is_zeroed = _is_zeroed(context, conditioning.get("cross_attn"))
    fits = None if slots is None or is_zeroed else slots.fitted(context)
    added: dict[str, Any] = {
        SLOTS_KEY: fits or CallSlots(torch.zeros(1, context.cond.shape[1], 1, dtype=torch.int32)),
        # Before any batch is known: one row that says whose it is.
        PLACES_KEY: PlaceMap(torch.tensor([[number]], dtype=torch.int32), frame),
    }
    if region_masks:
        added[REGIONS_KEY] = RegionMaps(region_masks, frame)
    return {**conditioning, "model_conds": {**model_conds, **added}}


_zeroed: WeakKeyDictionary[comfy.conds.CONDRegular, bool] = WeakKeyDictionary()


def _is_zeroed(context: comfy.conds.CONDRegular, encoded: object) -> bool:
    """Whether ConditioningZeroOut emptied the prompt; it leaves the map behind.

    Args:
        encoded: the text as it was, which some models write anew before they sample.
    """
    if context not in _zeroed:
        texts = (each for each in (context.cond, encoded) if isinstance(each, Tensor))
        _zeroed[context] = not all(bool(each.any()) for each in texts)
    return _zeroed[context]
