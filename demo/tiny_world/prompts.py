"""Prompts with words of one's own for subjects, and the right answer to each."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import world

UNSEEN = 1_000_000  # seeds from here on are never trained on
TOKENS: Mapping[str, str] = {"<anna>": "person", "<rex>": "dog"}
Cast = Mapping[str, world.Identity]  # by token


class PromptTextError(ValueError):
    """The tiny world has no right answer to this prompt."""


@dataclass(frozen=True)
class Request:
    """A prompt and what it asks for.

    Attributes:
        text: the prompt, with tokens.
        tokens: those of its subjects.
        right: the right answer.
        mask: where its subjects are, `[32, 32]`.
    """

    text: str
    tokens: tuple[str, ...]
    right: world.Picture
    mask: NDArray[np.bool_]


def draw_cast(seed: int) -> tuple[Cast, Mapping[str, world.Picture]]:
    """Subjects that nobody has seen, and a photograph of each, somewhere."""
    draws = np.random.default_rng([UNSEEN, seed])
    cast = {token: world.random_identity(draws, kind) for token, kind in TOKENS.items()}
    photographs = {
        token: world.reference_picture(draws, identity)[0] for token, identity in cast.items()
    }
    return cast, photographs


def read_prompt(text: str, cast: Cast) -> Request:
    """What the prompt asks for.

    Raises:
        PromptTextError: no caption of the world reads like this.
    """
    known = {caption: (tokens, placed, scene) for caption, tokens, placed, scene in _captions(cast)}
    if text not in known:
        closest = difflib.get_close_matches(text, known, n=3, cutoff=0.0)
        raise PromptTextError(
            f"prompt: found '{text}', which the tiny world cannot draw. It knows {_vocabulary()}. "
            "The nearest prompts are:\n  " + "\n  ".join(closest)
        )
    tokens, placed, scene = known[text]
    mask = np.logical_or.reduce([world.subject_mask(each) for each in placed])
    return Request(text, tokens, world.draw(placed, scene), mask)


_Caption = tuple[str, tuple[str, ...], list[world.Placed], world.Scene]


def _captions(cast: Cast) -> Iterator[_Caption]:
    """Every prompt that has a right answer: there are few enough to try them all."""
    scenes = itertools.product(world.STYLES, world.BACKGROUNDS, world.PROPS)
    for scene in itertools.starmap(world.Scene, scenes):
        for count in range(1, len(cast) + 1):
            for tokens in itertools.permutations(cast, count):
                for places in itertools.combinations(world.PLACES, count):
                    placed = [
                        world.Placed(cast[token], place)
                        for token, place in zip(tokens, places, strict=True)
                    ]
                    yield world.caption(placed, scene, nouns=tokens), tokens, placed, scene


def _vocabulary() -> str:
    words = {
        "subjects": TOKENS,
        "styles": world.STYLES,
        "places": world.PLACES,
        "backgrounds": world.BACKGROUNDS,
        "things above": world.PROPS,
    }
    return "; ".join(f"{name}: {', '.join(each)}" for name, each in words.items())


def psnr(picture: world.Picture, right: world.Picture, where: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], over the pixels `where`."""
    error = np.square(picture.astype(np.float64) - right)[where].mean()
    return float(-10.0 * np.log10(max(error, 1e-10)))
