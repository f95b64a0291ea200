"""What one sampling has shown so far: where each subject is, step after step.

It travels in the sampling's own options and ends with them, so two samplings never mix and nothing
stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....nested_core.attention import BoundToken, blended_values
from ....nested_core.call.arrival import Sent
from ....nested_core.call.evidence import SubjectMaps
from ....nested_core.call.places import Place
from ....nested_core.call.sighting import Sighting
from ....nested_core.maps import ValuePicture, value_picture
from ....nested_core.region import of_frames
from ....nested_core.sites import Site
from ..notices import Notices
from .recording import Recorder, Seen, any_values

SAMPLING_KEY = "nested_attention_sampling"


@dataclass(eq=False)
class Tally:
    """What one binding has done in a sampling so far.

    Attributes:
        rows: pictures and prompts in which it acted; a row whose place is unknown counts by itself.
        steps: those in which it acted.
        attention: per call, the mean of A_s over rows, heads, pixels and sites, on the device.
    """

    rows: set[Hashable] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    attention: list[Tensor] = field(default_factory=list)

    def mean_attention(self) -> float:
        """Over all calls; this waits for the device."""
        return float(torch.stack([each.cpu() for each in self.attention]).mean())


class Sampling:
    """The state of one sampling.

    Args:
        noise_levels: of the steps, falling, and the last one's end.
        separates: whether subjects compete.
        notices: where what there is to say goes.

    Attributes:
        tallies: what each binding has done, by its id.
        pictures: the latent of all of them, as the sampler gives it to the model just now.
        denoised: what the last step took for the finished pictures.
        sent: what ComfyUI runs through the UNet just now.
        reached: the sites that were run while some subject was to act there.
        planned: the bindings that were to act in some call of the UNet.
        surroundings: names of other packs' functions around the UNet and in it.
    """

    def __init__(
        self,
        noise_levels: Sequence[float],
        separates: bool,
        recorders: Sequence[Recorder],
        notices: Notices | None = None,
    ) -> None:
        self._noise_levels = tuple(noise_levels)
        self.maps = SubjectMaps() if separates else None
        self.recordings = tuple(each.start(self.num_steps) for each in recorders)
        self.notices = notices or Notices()
        self.tallies: dict[int, Tally] = {}
        self.pictures: Tensor | None = None
        self.denoised: Tensor | None = None
        self.sent: Sent | None = None
        self.reached: set[Site] = set()
        self.planned: set[int] = set()
        self.surroundings: set[str] = set()
        self._step = 0
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._kept: list[Any] = []
        self._masks: tuple[int, tuple[Tensor, ...]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Sampling:
        return self  # packs copy options with all that is in them; a sampling has one state

    @classmethod
    def unknown(cls) -> Sampling:
        """For a call of the UNet that belongs to no sampling that anybody announced."""
        return cls((), False, ())

    @property
    def num_steps(self) -> int:
        """At least 1."""
        return max(len(self._noise_levels) - 1, 1)

    def number_of(self, conditioning: Mapping[str, Any], slots: object) -> int:
        """A number of a conditioning's own, the same whenever this sampling meets it.

        A copy for an area on the other side of guidance has the same uuid and other slots.
        """
        key = (conditioning.get("uuid"), id(slots))
        if key not in self._numbers:
            self._kept.append(slots)  # what is kept alive shares its id with nobody
        return self._numbers.setdefault(key, len(self._numbers))

    def with_steps(self, callback: Callable[..., None] | None) -> Callable[..., None]:
        """The sampler's callback, which also tells this state that a step is over."""

        def over(step: int, denoised: Tensor, *args: Any, **kwargs: Any) -> None:
            self._step, self.denoised = step + 1, denoised
            if callback is not None:
                callback(step, denoised, *args, **kwargs)

        return over

    @property
    def num_frames(self) -> int:
        """Of a whole video; 1 for pictures."""
        return (
            self.pictures.shape[2] if self.pictures is not None and self.pictures.ndim == 5 else 1
        )

    @property
    def _frames(self) -> tuple[int, ...]:
        """The frames that are run just now."""
        frames = None if self.sent is None else self.sent.frame.frames
        return tuple(range(self.num_frames)) if frames is None else frames

    def masks_of_frames(self, masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Masks as latents of this sampling have them, worked out once."""
        if self._masks is None or self._masks[0] != self.num_frames:
            in_frames = tuple(of_frames(each, self.num_frames) for each in masks)
            self._masks = (self.num_frames, in_frames)
        return self._masks[1]

    def watch(self, noise_level: float | None, places: Sequence[Place] | None) -> CallWatch:
        """What looks on during one call of the UNet.

        Args:
            noise_level: of the call; needed where maps are recorded.
            places: of the rows; None where they are unknown.
        """
        step = self._step_at(noise_level) if noise_level is not None else 0
        if places is None:
            return CallWatch(self, None, step, frozenset(), False)
        plans = [each.record.plan for each in self.recordings]
        wanted = self.maps is not None or any(
            each.wants_step(step, self.num_steps) for each in plans
        )
        values = any_values(self.recordings, step, self.num_steps)
        return CallWatch(self, places, step, values, wanted)

    def _step_at(self, noise_level: float) -> int:
        """The step in which a noise level is; samplers also call the model between two."""
        reached = sum(each >= noise_level * (1.0 - 1e-4) for each in self._noise_levels[:-1])
        return max(reached - 1, 0)

    def learn(self, shown: Sequence[Seen], places: Sequence[Place], step: int) -> None:
        """Takes in what one call of the UNet has shown."""
        if self.maps is not None:
            self.maps.learn([each.sighting for each in shown], places)
        for each in self.recordings:
            each.add(shown, places, step, self.num_steps, self._frames, self.num_frames)

    def count(self, binding_id: int, rows: Iterable[Hashable], attention: Tensor) -> None:
        """Takes in where one binding acted in a call, and how much."""
        tally = self.tallies.setdefault(binding_id, Tally())
        tally.rows.update(rows)
        tally.steps.add(min(self._step, self.num_steps - 1))
        tally.attention.append(attention)


class CallWatch:
    """Looks on during one call of the UNet.

    Args:
        wants_maps: whether somebody wants more than to know who acted.
    """

    def __init__(
        self,
        sampling: Sampling,
        places: Sequence[Place] | None,
        step: int,
        value_sites: frozenset[Site],
        wants_maps: bool,
    ) -> None:
        self._sampling, self._places, self._step = sampling, places, step
        self._value_sites, self.wants_maps = value_sites, wants_maps
        self._shown: list[Seen] = []
        self._rows: dict[int, set[Hashable]] = {}
        self._attention: dict[int, list[Tensor]] = {}

    def saw(self, sighting: Sighting, tokens: Sequence[BoundToken], text_value: Tensor) -> None:
        """One site's attention. The tokens' values are looked at here and not kept."""
        self._count(sighting)
        if not self.wants_maps or not sighting.is_on_grid:
            return
        values: tuple[tuple[ValuePicture, ...], ...] = ()
        if sighting.site in self._value_sites:
            pictures = [_value_pictures(each, text_value, sighting.grid) for each in tokens]
            values = tuple(zip(*pictures, strict=True))
        self._shown.append(Seen(sighting, values))

    def _count(self, sighting: Sighting) -> None:
        means = sighting.seen.mean(dim=(0, 2, 3, 4)).unbind()
        for binding, mean in zip(sighting.bindings, means, strict=True):
            self._attention.setdefault(binding.id, []).append(mean)
            rows = self._rows.setdefault(binding.id, set())
            rows.update(
                row if self._places is None else self._places[row][:2] for row in sighting.rows
            )

    def finish(self) -> None:
        """The call is over."""
        for each, means in self._attention.items():
            self._sampling.count(each, self._rows[each], torch.stack(means).mean())
        if self._places is not None and self._shown:
            self._sampling.learn(self._shown, self._places, self._step)


def _value_pictures(
    token: BoundToken, text_value: Tensor, grid: tuple[int, int]
) -> list[ValuePicture]:
    """u(q) of one bound token for every row."""
    text = text_value.take_along_dim(token.position.view(-1, 1, 1, 1), dim=2)
    blended = blended_values(token, text_value)
    return [value_picture(*each, grid) for each in zip(blended, text, strict=True)]
