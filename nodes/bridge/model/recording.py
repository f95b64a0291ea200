"""Filling a record of maps while ComfyUI samples, and showing it live.

A record belongs to one sampling. While that runs the record is the sampling's own; when it has
ended well, the record is handed to the node whose output it is, together with the latents that came
out: whoever shows it can tell whether it is about the picture at hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ....nested_core.call.places import Place
from ....nested_core.call.sighting import Sighting
from ....nested_core.maps import (
    MapError,
    MapRecord,
    RecordPlan,
    SiteMap,
    ValuePicture,
    live_view,
)
from ....nested_core.maps.canvas import to_image
from ....nested_core.sites import Site
from ..families.registry import site_dims

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_KEY = "nested_attention_records"
_PREVIEW_SIDE = 512
_MAX_SAMPLINGS = 4  # that one node remembers, for graphs with several samplers


@dataclass(eq=False)
class SampledRecord(MapRecord):
    """What Record Maps puts out: the maps of the latest sampling with its MODEL, and some before."""

    _samplings: deque[tuple[tuple[Tensor, ...], MapRecord]] = field(
        default_factory=lambda: deque(maxlen=_MAX_SAMPLINGS), repr=False
    )

    def publish(self, record: MapRecord, latents: Sequence[Tensor]) -> None:
        """A sampling has ended.

        Args:
            latents: what came out of it, each `[pictures, channels, height, width]` on the CPU.
        """
        self.become(record)
        self._samplings.append((tuple(latents), record))

    def of(self, samples: object) -> MapRecord:
        """The record of the sampling that made this LATENT.

        Raises:
            MapError: none of those that are remembered did.
        """
        latent = samples.get("samples") if isinstance(samples, dict) else None
        for latents, record in reversed(self._samplings):
            if isinstance(latent, Tensor) and any(_is_made_of(latent, each) for each in latents):
                return record
        if self.num_steps is None:
            self.require_maps()
        raise MapError(
            "Show Maps: 'samples' is not what came out of a sampler that ran with the MODEL of this "
            "Record Maps node, so its maps belong to another picture. Connect the LATENT of that very "
            "sampler, and give the sampler the MODEL of Record Maps, not that of Apply Nested "
            "Attention."
        )


def _is_made_of(samples: Tensor, sampled: Tensor) -> bool:
    """Whether every picture of a LATENT is one of those sampled, in whatever precision it is kept."""
    if samples.shape[1:] != sampled.shape[1:]:
        return False
    same = sampled.to(samples.dtype)
    return all(any(torch.equal(one.cpu(), each) for each in same) for one in samples)


def record_maps(
    model: ModelPatcher, plan: RecordPlan, preview: bool
) -> tuple[ModelPatcher, SampledRecord]:
    """A clone of the model that fills the record at every sampling, before or behind Apply.

    Raises:
        HostError: the model is of no supported family.
        SiteError: the plan's selector names no site of this model.
    """
    sites = plan.sites.select(site_dims(model))
    record = SampledRecord(plan)
    clone = model.clone()
    clone.set_attachments(_KEY, (*recorders_of(model), Recorder(record, sites, preview)))
    return clone, record


def recorders_of(model: ModelPatcher) -> tuple[Recorder, ...]:
    """Those of all Record Maps nodes that the model went through."""
    return model.get_attachment(_KEY) or ()


class Seen(NamedTuple):
    """What one site has shown, and pictures of u(q) by row and bound token where somebody wants them."""

    sighting: Sighting
    values: tuple[tuple[ValuePicture, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Recorder:
    """One Record Maps node.

    Attributes:
        output: where finished records go.
        sites: where it records.
        preview: whether the maps are shown while the sampler runs.
    """

    output: SampledRecord
    sites: frozenset[Site]
    preview: bool

    def start(self, num_steps: int) -> Recording:
        """For one sampling."""
        record = MapRecord(self.output.plan)
        record.begin(num_steps)
        return Recording(self, record)


@dataclass(frozen=True, eq=False)
class Recording:
    """One Record Maps node in one sampling."""

    recorder: Recorder
    record: MapRecord

    def finish(self, latents: Sequence[Tensor]) -> None:
        """The sampling has ended well, and these came out of it."""
        self.recorder.output.publish(self.record, latents)

    def add(
        self,
        shown: Sequence[Seen],
        places: Sequence[Place],
        step: int,
        num_steps: int,
        frames: Sequence[int] = (0,),
        num_frames: int = 1,
    ) -> None:
        """Keeps what one call of the UNet has shown; maps leave the device in one go per grid.

        Args:
            frames: which frames of a video the latent has, of so many.
        """
        self.record.num_frames = num_frames
        if not self.record.plan.wants_step(step, num_steps):
            return
        chosen = [each for each in shown if each.sighting.site in self.recorder.sites]
        maps = _on_cpu([each.sighting.seen for each in chosen])
        wants_values = self.record.plan.wants_values(step, num_steps)
        for (sighting, values), seen in zip(chosen, maps, strict=True):
            for row_index, row in enumerate(sighting.rows):
                if places[row].window:
                    continue  # rows or columns here and there make no map
                for token in dict.fromkeys(each.token for each in sighting.bindings):
                    places_of_token = [
                        n for n, each in enumerate(sighting.bindings) if each.token == token
                    ]
                    pictures = values[row_index] if values and wants_values else ()
                    of_frames = seen[row_index, places_of_token].sum(0)
                    numbers = frames[frames.index(places[row].first_frame) :]
                    for nth, (frame, attention) in enumerate(zip(numbers, of_frames, strict=False)):
                        self.record.add(
                            SiteMap(
                                step=step,
                                num_steps=num_steps,
                                site=sighting.site,
                                picture=places[row].picture * num_frames + frame,
                                token=token,
                                attention=_in_whole(attention, places[row]).half(),
                                # They were looked at in the first frame alone.
                                values=pictures[places_of_token[0]]
                                if pictures and not nth
                                else None,
                            )
                        )

    def with_preview(self, callback: Callable[..., None] | None) -> Callable[..., None] | None:
        """The sampler's callback, and after it the maps of its step in ComfyUI's preview."""
        if not self.recorder.preview:
            return callback

        def show(step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
            if callback is not None:
                callback(step, denoised, x, total_steps)
            if any(each.step == step for each in self.record.maps):
                image = _live_image(self.record, step)
                progress = comfy.utils.ProgressBar(total_steps)
                progress.update_absolute(step + 1, total_steps, ("JPEG", image, _PREVIEW_SIDE))

        return show


def _live_image(record: MapRecord, step: int) -> Image.Image:
    image = to_image(live_view(record, record.pictures[0], step=step))
    scale = _PREVIEW_SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST)


def _on_cpu(maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps in float32; the device is waited for once per shape, not once per site."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, each in enumerate(maps):
        by_shape.setdefault(each.shape, []).append(index)
    copied: dict[int, Tensor] = {}
    for indices in by_shape.values():
        stacked = torch.stack([maps[index] for index in indices]).cpu()
        copied.update(zip(indices, stacked, strict=True))
    return [copied[index] for index in range(len(maps))]


def _in_whole(seen: Tensor, place: Place) -> Tensor:
    """The map of an area where it lies in the whole picture, on a grid as fine as its own."""
    if (place.height, place.width) == (place.picture_height, place.picture_width):
        return seen
    down, across = seen.shape[0] / place.height, seen.shape[1] / place.width
    whole = seen.new_zeros(round(place.picture_height * down), round(place.picture_width * across))
    top, left = round(place.top * down), round(place.left * across)
    target = whole[top : top + seen.shape[0], left : left + seen.shape[1]]
    target.copy_(seen[: target.shape[0], : target.shape[1]])
    return whole


def any_values(recordings: Sequence[Recording], step: int, num_steps: int) -> frozenset[Site]:
    """The sites whose values some record wants at this step."""
    wanting = [each for each in recordings if each.record.plan.wants_values(step, num_steps)]
    return frozenset[Any]().union(*(each.recorder.sites for each in wanting))
