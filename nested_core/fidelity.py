"""Fidelity: one knob from the prompt to the subject.

A fidelity f in [0, 1] multiplies what the user set for the single parts:

    f <= 1/2    strength  2 f                      token weight  1
    f >= 1/2    strength  1 + (2 f - 1) / 8        token weight  2^(2 f - 1)

0 is the noun alone, 1/2 as trained, exactly. Measured in the tiny world: as long as any likeness is
left, no other part alone gives the prompt more for the same loss of likeness than strength does; and
a token weight of 2 raises the likeness more than any strength does, and costs the prompt less.
"""

from __future__ import annotations

from typing import NamedTuple

AS_TRAINED = 0.5

_MOST_STRENGTH = 1.125
_MOST_TOKEN_WEIGHT = 2.0


class Balance(NamedTuple):
    """Factors on a binding's strength and token weight; both exactly 1 as trained."""

    strength: float
    token_weight: float


def balance_at(fidelity: float) -> Balance:
    """The factors of a fidelity in [0, 1]; neither ever falls as it rises."""
    if fidelity <= AS_TRAINED:
        return Balance(fidelity / AS_TRAINED, 1.0)
    beyond = (fidelity - AS_TRAINED) / (1.0 - AS_TRAINED)
    return Balance(1.0 + beyond * (_MOST_STRENGTH - 1.0), _MOST_TOKEN_WEIGHT**beyond)
