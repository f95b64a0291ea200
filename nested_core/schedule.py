"""Schedules: how much a subject acts at each moment of the sampling.

A moment is a percent p in [0, 1] of the sampling, ComfyUI's own measure: 0 pure noise, 1 the finished
picture. With x = (p - start) / (end - start), the place inside the binding's part of the sampling, and
the smooth step S(x) = x^2 (3 - 2 x), which leaves 0 and arrives at 1 without a kink:

    constant    1
    early       1 - S(x)                  composition and likeness, then the prompt finishes
    late        S(x)                      the prompt composes, then the subject finishes
    ease        S(x / r) S((1 - x) / r)   all of it but the ends; each ramp is r = 1/4 of the part
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from .errors import BindingError

ScheduleName = Literal["constant", "early", "late", "ease"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)

_RAMP = 0.25
# Halvings of [0, 1] until neighbouring float32 noise levels are told apart.
_HALVINGS = 40


def presence(schedule: ScheduleName, percent: float, start: float, end: float) -> float:
    """How much a subject acts at a percent of the sampling, in [0, 1].

    0 outside `start` to `end`; both ends belong to it. A part without length is a single moment, in
    which every schedule acts in full.
    """
    if not start <= percent <= end:
        return 0.0
    if start == end:
        return 1.0
    return _SHAPES[schedule]((percent - start) / (end - start))


def percent_at(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """The percent of the sampling at which the noise level is `sigma`, in [0, 1].

    Hosts tell the noise level of a percent, not the other way round. Noise only falls, so bisection
    finds it, and levels beyond either end are that end.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return high


def parse_schedule(name: str, where: str) -> ScheduleName:
    """The schedule of that name.

    Raises:
        BindingError: there is none; the message lists them.
    """
    if name not in SCHEDULES:
        raise BindingError(
            f"{where}: found the schedule '{name}', expected one of {', '.join(SCHEDULES)}. "
            "Choose one of those; 'constant' is as trained."
        )
    return name


def _smooth_step(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


_SHAPES: Mapping[ScheduleName, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    "early": lambda x: 1.0 - _smooth_step(x),
    "late": _smooth_step,
    "ease": lambda x: _smooth_step(x / _RAMP) * _smooth_step((1.0 - x) / _RAMP),
}
