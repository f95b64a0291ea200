"""What was sent to the UNet, and what of it arrives there: whose rows, and which part of the pictures.

Other packs stand between the two. They run rows one by one, cut pictures into tiles, or put tiles
into one batch. What the host says of a row travels with it; where that was lost, rows are found
again by their content, which is certain or is not claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .content import Cut, rows_of_numbers, rows_that_read, where_cut
from .places import Frame, Place, cropped


@dataclass(frozen=True, eq=False)
class SentPrompt:
    """A conditioning of this call.

    Attributes:
        context: `[1 or pictures, text_tokens, width]`.
        slots: of its text tokens, as `read_slots` reads them.
    """

    number: int
    context: Tensor
    slots: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sent:
    """What ComfyUI is about to run through the UNet, in as many batches as it likes.

    Attributes:
        latent: `[pictures, channels, (frames,) height, width]`.
        masks: of every masked binding, `[pictures, 1 or frames, height, width]` in image coordinates.
        is_direct: whether nothing of another pack stands between here and the UNet.
    """

    latent: Tensor
    frame: Frame
    prompts: tuple[SentPrompt, ...]
    masks: tuple[Tensor, ...]
    is_direct: bool = True

    def checked(self, told: Arrival, latent: Tensor, context: Tensor | None) -> Arrival | None:
        """What was told of the rows, if it is still true of their text and pixels.

        Somebody may have changed their order, or moved their content, and kept the shapes; or changed
        the order of all tensors but the masks, which are a list. This looks at the device.
        """
        if told.places is None or context is None or len(context) != len(latent):
            return None
        texts = {each.number: rows_that_read(each.context, context) for each in self.prompts}
        is_true = all(
            place.conditioning in texts
            and bool(texts[place.conditioning][row])
            and (not any(told.slots[row]) or self._shows(place, latent[row]))
            for row, place in enumerate(told.places)
        )
        return replace(told, masks=self.masks_at(told.places)) if is_true else None

    def _shows(self, place: Place, pixels: Tensor) -> bool:
        for row, top, left in self._cuts(place):
            cut = self.latent[row, ..., top : top + place.height, left : left + place.width]
            if pixels.ndim == 4:  # of a video
                cut = cut[:, self._local(place) :][:, : pixels.shape[1]]
            if cut.shape == pixels.shape and torch.equal(cut.to(pixels), pixels):
                return True
        return False

    def _local(self, place: Place) -> int:
        """The number of a place's first frame in the latent."""
        frames, first = self.frame.frames, place.first_frame
        return first if frames is None or first not in frames else frames.index(first)

    def _cuts(self, place: Place) -> Iterator[Cut]:
        """Where in the latent a place is; a window may hold a picture twice."""
        for row in range(self.frame.num_rows):
            corner = self.frame.place(place.conditioning, row, (place.height, place.width, 0, 0))
            if corner.picture == place.picture:
                yield row, place.top - corner.top, place.left - corner.left

    def masks_at(self, places: Sequence[Place]) -> tuple[Tensor, ...]:
        """The part of its picture's masks that each of these places sees."""
        size = (self.frame.height, self.frame.width)
        cuts = [next(self._cuts(place)) for place in places]
        boxes = [
            (row, (place.height, place.width, top, left))
            for place, (row, top, left) in zip(places, cuts, strict=True)
        ]
        return tuple(
            torch.cat([cropped(mask[[row]], size, box) for row, box in boxes])
            for mask in (self.frame.of_masks(each, self.frame.num_rows) for each in self.masks)
        )


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What has travelled with the rows of a call, each part batched and split as the rows are.

    Attributes:
        slots: which text tokens are bound, int32 `[rows, text_tokens, 1]`; None where it was lost.
        places: where each row lies, as `Place.table` writes it; None where it was lost.
        masks: of every masked binding, `[rows, 1 or frames, height, width]`.
    """

    slots: Tensor | None = None
    places: Tensor | None = None
    masks: Sequence[Tensor] = ()

    def are_of(self, latent: Tensor) -> bool:
        """Whether all of it is there, for as many rows."""
        parts = (self.slots, self.places, *self.masks)
        return all(each is not None and len(each) == len(latent) for each in parts)


@dataclass(frozen=True, eq=False)
class Arrival:
    """What is known of the rows of one call of the UNet.

    Attributes:
        slots: per row, as `read_slots` reads them.
        places: per row; None where nobody knows which picture or which part of it the row shows.
        masks: of every masked binding, `[rows, 1 or frames, height, width]`, cropped to each row's
            place; None where places are unknown.
    """

    slots: tuple[tuple[int, ...], ...]
    places: tuple[Place, ...] | None
    masks: tuple[Tensor, ...] | None


def as_told(latent: Tensor, facts: RowFacts) -> Arrival | None:
    """By what travelled with the rows; None where it is not theirs."""
    if facts.slots is None or facts.places is None or not facts.are_of(latent):
        return None
    places = Place.of_table(facts.places)
    size = tuple(latent.shape[-2:])
    if any((place.height, place.width) != size for place in places):
        return None
    return Arrival(_rows(facts.slots), places, tuple(facts.masks))


def by_content(sent: Sent, latent: Tensor, context: Tensor | None) -> Arrival | None:
    """By finding each row's text and pixels again in what was sent; None where the text is a new one.

    This looks at the device. It is only asked where what travelled does not fit.
    """
    if context is None or len(context) != len(latent):
        return None
    slots: list[tuple[int, ...]] = []
    places: list[Place | None] = []
    texts = [rows_that_read(prompt.context, context) for prompt in sent.prompts]
    pixels = where_cut(sent.latent, latent)
    for row in range(len(latent)):
        reading = [
            prompt for prompt, rows in zip(sent.prompts, texts, strict=True) if bool(rows[row])
        ]
        if len({prompt.slots for prompt in reading}) != 1:
            return None
        repeats = context.shape[1] // len(reading[0].slots)
        slots.append(reading[0].slots * repeats)
        places.append(
            _place(sent.frame, reading, pixels[row], (latent.shape[-2], latent.shape[-1]))
        )
    known = tuple(place for place in places if place is not None)
    if len(known) < len(places):
        return Arrival(tuple(slots), None, None)
    return Arrival(tuple(slots), known, sent.masks_at(known))


def without_places(facts: RowFacts, num_rows: int) -> Arrival | None:
    """Only whose the rows are."""
    if facts.slots is None or len(facts.slots) != num_rows:
        return None
    return Arrival(_rows(facts.slots), None, None)


def _rows(slots: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows_of_numbers(slots[..., 0]))


def _place(
    frame: Frame, reading: Sequence[SentPrompt], cuts: Sequence[Cut], size: tuple[int, int]
) -> Place | None:
    """The one place that a row can be; None where there are several and it matters."""
    (height, width), number = size, reading[0].number
    if not any(reading[0].slots):
        return frame.place(number, 0, (height, width, 0, 0))
    if not frame.is_known:
        return None
    if not frame.is_connected and size != (frame.height, frame.width):
        return None
    candidates = {frame.place(number, row, (height, width, top, left)) for row, top, left in cuts}
    return candidates.pop() if len(candidates) == 1 else None
