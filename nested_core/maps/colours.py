"""Colours of the sheets: one scale for numbers, one colour for each subject."""

from __future__ import annotations

import numpy as np

from ..shapes import Float

Rgb = tuple[int, int, int]

PAPER: Rgb = (251, 250, 247)
INK: Rgb = (38, 36, 48)
SOFT: Rgb = (104, 100, 114)
FRAME: Rgb = (216, 212, 206)

# From night over ember to straw. Lightness rises evenly, so that the scale reads in grey too.
_SCALE = np.array(
    [
        (16, 14, 38),
        (44, 24, 82),
        (88, 28, 108),
        (136, 38, 106),
        (182, 54, 92),
        (220, 82, 66),
        (243, 126, 40),
        (250, 178, 60),
        (253, 220, 118),
        (255, 250, 208),
    ],
    dtype=np.float32,
)

# Told apart by hue and by lightness, on paper and on pictures; neighbours differ most.
_SUBJECTS: tuple[Rgb, ...] = (
    (214, 82, 24),
    (24, 126, 194),
    (40, 150, 84),
    (176, 60, 160),
    (196, 148, 0),
    (98, 76, 206),
    (200, 36, 72),
    (0, 146, 148),
)

# The grey parts of a picture that is laid under a map: red, green, blue as the eye weighs them.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


def scale_colours(
    shares: Float[np.ndarray, "height width"],
) -> Float[np.ndarray, "height width 3"]:
    """The colours of numbers from 0 to 1; what lies outside gets the nearer end's."""
    places = kept_in_range(shares) * (len(_SCALE) - 1)
    anchors = np.arange(len(_SCALE))
    bands = [np.interp(places, anchors, _SCALE[:, band]) for band in range(3)]
    return (np.stack(bands, axis=-1) / 255).astype(np.float32)


def subject_colour(number: int) -> Rgb:
    """The colour of a record's n-th subject; from the ninth on they come again."""
    return _SUBJECTS[number % len(_SUBJECTS)]


def laid_over(
    shares: Float[np.ndarray, "height width"], image: Float[np.ndarray, "height width 3"] | None
) -> Float[np.ndarray, "height width 3"]:
    """Numbers from 0 to 1 as colours, over a grey image where there is one.

    The colours cover more where the number is larger: a face stays recognisable under a map.
    """
    colours = scale_colours(shares)
    if image is None:
        return colours
    cover = 0.5 + 0.4 * kept_in_range(shares)[..., None]
    # Dimmed, or a bright wall would look like attention.
    return (cover * colours + (1 - cover) * 0.7 * _grey(image)).astype(np.float32)


def blended(
    shares: Float[np.ndarray, "subjects height width"],
    colours: list[Rgb],
    image: Float[np.ndarray, "height width 3"] | None,
) -> Float[np.ndarray, "height width 3"]:
    """Every subject in its own colour at once, mixed where several claim a pixel."""
    own = np.array(colours, dtype=np.float32) / 255
    # The strongest subject gives a pixel its hue, or many would mix to grey; an even claim is mixed.
    strongest = shares.max(axis=0)
    weights = (shares / np.maximum(strongest, 1e-12)) ** 8
    mixed = np.einsum("shw,sc->hwc", weights, own)
    mixed = mixed / np.maximum(weights.sum(axis=0), 1e-12)[..., None]
    cover = 0.92 * kept_in_range(strongest)[..., None]
    ground = np.full_like(mixed, 0.09) if image is None else 0.85 * _grey(image)
    return (cover * mixed + (1 - cover) * ground).astype(np.float32)


def kept_in_range(numbers: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The numbers, those outside [0, 1] at its nearer end."""
    return np.minimum(np.maximum(numbers, 0), 1)


def _grey(image: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    return np.repeat((image @ _LUMINANCE)[..., None], 3, axis=-1)
