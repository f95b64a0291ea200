"""What decides who acts: the bindings of a model, and the moment of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..binding import Binding
from ..schedule import percent_at
from ..sites import Site


@dataclass(frozen=True, eq=False)
class Rules:
    """What a model's bindings say about every call. Never changed.

    Attributes:
        sites: where each binding acts, by its id.
        separation: how far competing subjects are kept apart, in [0, 1].
    """

    bindings: tuple[Binding, ...]
    sites: Mapping[int, frozenset[Site]]
    separation: float

    @cached_property
    def acting(self) -> tuple[Binding, ...]:
        """Those that change anything at all."""
        return tuple(binding for binding in self.bindings if binding.has_effect)

    @cached_property
    def masked(self) -> tuple[Binding, ...]:
        """Those of them that have a mask, in the order in which masks travel."""
        return tuple(binding for binding in self.acting if binding.mask is not None)

    @cached_property
    def masks(self) -> tuple[Tensor, ...]:
        """Theirs, each `[pictures, height, width]` in image coordinates; see `region.of_frames`."""
        return tuple(each.mask for each in self.masked if each.mask is not None)

    @cached_property
    def is_scheduled(self) -> bool:
        """Whether it matters at which noise level a call is."""
        always = ("constant", 0.0, 1.0)
        return any(
            (each.schedule, each.start_percent, each.end_percent) != always for each in self.acting
        )

    @property
    def is_local(self) -> bool:
        """Whether it matters which picture, and which part of it, a row shows."""
        several = any(len(binding.subject.subjects) > 1 for binding in self.acting)
        return bool(self.masked) or bool(self.separation) or several


@dataclass(frozen=True)
class Moment:
    """When in the sampling a call is.

    Attributes:
        noise_level: None where it does not matter.
        noise_level_at: of a percent of the sampling.
    """

    noise_level: float | None
    noise_level_at: Callable[[float], float]

    def presence(self, binding: Binding) -> float:
        """How much a binding acts now, in [0, 1]; without a noise level, fully."""
        if self.noise_level is None:
            return 1.0
        # By noise levels first: both ends belong to a binding's part, whatever a percent rounds to.
        first, last = map(self.noise_level_at, (binding.start_percent, binding.end_percent))
        if not last <= self.noise_level <= first:
            return 0.0
        if binding.schedule == "constant":
            return 1.0
        percent = percent_at(self.noise_level, self.noise_level_at)
        return binding.presence_at(min(max(percent, binding.start_percent), binding.end_percent))
