"""A binding: which word of the prompt is which subject, how strongly, where and when."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from .errors import BindingError, shown
from .fidelity import AS_TRAINED, balance_at
from .schedule import ScheduleName, parse_schedule, presence
from .shapes import Float
from .sites import EVERY_SITE, SiteSelector
from .subject import Subject, SubjectSequence
from .words import MAX_NOUN_CHARACTERS, MAX_TOKEN_CHARACTERS, composed, is_blank, word_problem


@dataclass(frozen=True, eq=False)
class Binding:
    """One subject bound to one token of the prompt. Make it with `bind`, which checks everything.

    Attributes:
        token: as the user writes it in the prompt, such as `<anna>`; in Unicode's form NFC.
        noun: in NFC too; what the text encoder reads in its place.
        strength: w in [0, 2]; 0 is the text alone, 1 as trained. With the fidelity in it.
        token_weight: t in [0.1, 10], multiplies the token's share of attention. With the fidelity
            in it.
        start_percent, end_percent: part of the sampling in which the subject acts, in [0, 1].
        mask: where the subject may act, [0, 1] in image coordinates, one per picture or one for all.
        sites: the attention layers in which it acts.
        schedule: how much it acts at each moment of its part of the sampling.
        node: the node that made it, as the page calls it, where sentences about it go.
    """

    subject: Subject | SubjectSequence
    token: str
    noun: str
    strength: float = 1.0
    token_weight: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    mask: Float[Tensor, "pictures height width"] | None = field(default=None, repr=False)
    sites: SiteSelector = EVERY_SITE
    schedule: ScheduleName = "constant"
    node: str | None = None

    @cached_property
    def id(self) -> int:
        """31 bits of a sha256 over the token and the subject's tokens, never 0.

        A model and a text encoder that went through different nodes still mean the same subject.
        """
        digest = hashlib.sha256(self.token.encode() + b"\0" + self.subject.digest).digest()
        return (int.from_bytes(digest[:4], "big") & 0x7FFFFFFF) or 1

    @property
    def has_effect(self) -> bool:
        """False where the formula gives the host's own output for every pixel."""
        return self.strength != 0.0 or self.token_weight != 1.0

    def presence_at(self, percent: float) -> float:
        """How much the subject acts at a percent of the sampling, in [0, 1]; both ends belong."""
        return presence(self.schedule, percent, self.start_percent, self.end_percent)


def bind(
    subject: Subject | SubjectSequence,
    token: str = "<person>",
    noun: str = "",
    strength: float = 1.0,
    token_weight: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    mask: Tensor | None = None,
    sites: str = "",
    schedule: str = "constant",
    fidelity: float = AS_TRAINED,
    node: str | None = None,
) -> Binding:
    """A checked binding. An empty `noun` is the encoder's own.

    Args:
        token: at most 100 characters, all of which can be seen; white space around it is dropped, and
            it is brought into Unicode's form NFC. So is the noun, of at most 200.
        fidelity: in [0, 1], from the prompt alone to the subject above all; 0.5 leaves strength and
            token weight as they are.
        node: see `Binding`.

    Raises:
        BindingError: token or noun empty, too long or not plain text, a number out of range, start
            after end, an unknown schedule.
        SiteError: `sites` cannot be read.
    """
    token = _checked_token(token)
    noun = _checked_noun(token, noun, subject.noun)
    _check_range(token, "strength", strength, 0.0, 2.0)
    _check_range(token, "token_weight", token_weight, 0.1, 10.0)
    _check_range(token, "start_percent", start_percent, 0.0, 1.0)
    _check_range(token, "end_percent", end_percent, 0.0, 1.0)
    _check_range(token, "fidelity", fidelity, 0.0, 1.0)
    if start_percent > end_percent:
        raise BindingError(
            f"Bind Subject '{token}': start_percent {start_percent:g} is after end_percent "
            f"{end_percent:g}, so the subject would never act. Exchange the two."
        )
    balance = balance_at(fidelity)
    return Binding(
        subject=subject,
        token=token,
        noun=noun,
        # The product can leave the ranges of the formula where the user's own settings are at an end.
        strength=min(strength * balance.strength, 2.0),
        token_weight=min(token_weight * balance.token_weight, 10.0),
        start_percent=start_percent,
        end_percent=end_percent,
        mask=None if mask is None else _mask_of_pictures(token, mask),
        sites=subject.encoder.family.parse_sites(sites),
        schedule=parse_schedule(schedule, f"Bind Subject '{token}'"),
        node=node,
    )


def _checked_token(token: str) -> str:
    token = composed(token.strip())
    if is_blank(token):
        raise BindingError(
            "Bind Subject: the token is empty. Give the subject a word of its own that you then "
            "write in the prompt, such as <anna>."
        )
    problem = word_problem(token, MAX_TOKEN_CHARACTERS)
    if problem is not None:
        raise BindingError(
            f"Bind Subject: the token '{shown(token)}' {problem}. Type it anew, as one short word such "
            "as <anna>."
        )
    return token


def _checked_noun(token: str, given: str, own: str) -> str:
    """The noun that the user gave, the encoder's own if that is empty."""
    noun = composed((given or own).strip())
    problem = word_problem(noun, MAX_NOUN_CHARACTERS)
    if problem is not None:
        otherwise = (
            "leave the field empty for the encoder's own" if given else "take another encoder"
        )
        raise BindingError(
            f"Bind Subject '{token}': the noun '{shown(noun)}' {problem}. Write plain words such as "
            f"'person' or 'black dog' into the field, or {otherwise}."
        )
    # The prompt's own syntax inside a noun would leave no single place to bind.
    if any(mark in noun for mark in "()\\") or "embedding:" in noun:
        raise BindingError(
            f"Bind Subject '{token}': the noun '{noun}' contains prompt syntax (a parenthesis, a "
            "backslash or 'embedding:'). Use plain words such as 'person' or 'black dog'; write "
            f"weights around the token in the prompt instead: ({token}:1.2)."
        )
    return noun


def _check_range(token: str, name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise BindingError(
            f"Bind Subject '{token}': {name} is {value:g}, expected a number from {low:g} to {high:g}."
        )


def _mask_of_pictures(token: str, mask: Tensor) -> Tensor:
    mask = mask.detach().float().cpu()
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or mask.numel() == 0:
        raise BindingError(
            f"Bind Subject '{token}': the mask has the shape {tuple(mask.shape)}, expected "
            "[pictures, height, width]. Connect a MASK output."
        )
    return mask.nan_to_num().clamp(0.0, 1.0)


def check_tokens_differ(bindings: Iterable[Binding]) -> None:
    """Raises BindingError where two bindings of one Apply share their token."""
    seen: set[str] = set()
    for binding in bindings:
        if binding.token in seen:
            raise BindingError(
                f"Apply Nested Attention: the token '{binding.token}' is bound twice. Give each "
                "subject a token of its own, such as <anna> and <rex>."
            )
        seen.add(binding.token)


def merge_bindings(earlier: Sequence[Binding], later: Sequence[Binding]) -> tuple[Binding, ...]:
    """The union of two Apply nodes' bindings; a later binding replaces an earlier one of its token."""
    replaced = {binding.token for binding in later}
    return (*(binding for binding in earlier if binding.token not in replaced), *later)
