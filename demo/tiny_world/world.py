"""The tiny world: subjects of coloured parts in scenes, 32 pixels wide, and the words for both.

An *identity* is a kind (person, dog) with a colour for each of its parts. A *scene* is everything
else: style, place, background, prop. A picture follows from the two, with nothing left to chance, so
for every identity and prompt there is exactly one right picture.

Colours come from a palette of named colours, each varied a little: words can say which colour of the
palette a part has, and only a photograph can show the very shade.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # [32, 32, 3] in [0, 1]

SIZE = 32
PALETTE: Mapping[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.15),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.90, 0.25),
    "green": (0.15, 0.60, 0.20),
    "blue": (0.15, 0.25, 0.85),
    "purple": (0.55, 0.20, 0.70),
    "pink": (0.97, 0.60, 0.75),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.10),
}
SHADES = 0.07  # standard deviation of a colour around the palette's

# Sprites, 12 pixels wide, feet at the bottom. Letters are parts, the rest belongs to every subject of
# the kind: # outline, s skin, e eyes, m mouth, n nose, space nothing.
_SPRITES = {
    "person": """
   hhhhhh
  hhhhhhhh
  hhhhhhhh
  hhhhhhhh
hhhhhhhhhhhh
############
 aassssssaa
aaassssssaaa
aaasesseSaaa
aaassssssaaa
aaassmmssaaa
aaaassssaaaa
 aa##ss##aa
tttttttttttt
tttttttttttt
tttttttttttt
tttttttttttt
ss#tttttt#ss
ss#tttttt#ss
  ########
  rrrrrrrr
  rrrrrrrr
  rrrrrrrr
  rrr##rrr
  rrr##rrr
  ###  ###
""",
    "dog": """
aaa      aaa
aaaaffffaaaa
aaaffffffaaa
aaaffffffaaa
aaafeffefaaa
aaaffffffaaa
 aaffnnffaa
   fffffm
  #ffffff#
 kkkkkkkkkk
 kkkkkkkkkk
 kkkkkkkkkk
 #kkkkkkkk#
  ffffffff
  ffffffff
  ffffffff
 #ffffffff#
 ##########
pppppppppppp
ppppp##ppppp
ppppp##ppppp
############
""",
}
PARTS: Mapping[str, Mapping[str, str]] = {
    "person": {"hat": "h", "hair": "a", "shirt": "t", "pants": "r"},
    "dog": {"ears": "a", "fur": "f", "scarf": "k", "paws": "p"},
}
KINDS = tuple(PARTS)
_FIXED = {
    "#": (0.16, 0.12, 0.14),
    "s": (0.93, 0.75, 0.62),
    "S": (0.93, 0.75, 0.62),
    "e": (0.05, 0.05, 0.10),
    "m": (0.75, 0.25, 0.25),
    "n": (0.05, 0.05, 0.05),
}

STYLES = ("photo", "negative", "sketch", "night")
PLACES: Mapping[str, int] = {"left": 0, "centre": 10, "right": 20}  # first column of the sprite
OPEN_PLACES = ("left", "right")  # of two subjects whose places the caption leaves open
BACKGROUNDS = ("forest", "beach", "city", "desert")
PROPS = ("nothing", "sun", "moon", "kite")


@dataclass(frozen=True)
class Identity:
    """Who somebody is.

    Attributes:
        kind: `person` or `dog`.
        names: the palette's nearest colour of each part.
        colours: the very colours, RGB in [0, 1].
    """

    kind: str
    names: Mapping[str, str]
    colours: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Scene:
    """Everything in a picture but who is in it."""

    style: str
    background: str
    prop: str


@dataclass(frozen=True)
class Placed:
    """A subject and its place in the picture."""

    identity: Identity
    place: str


def random_identity(draws: np.random.Generator, kind: str | None = None) -> Identity:
    """A subject that probably nobody has seen: its exact shades are drawn with it."""
    kind = kind or str(draws.choice(KINDS))
    return identity_of(draws, kind, {part: random_colour(draws) for part in PARTS[kind]})


def random_colour(draws: np.random.Generator) -> str:
    """A name of the palette."""
    return str(draws.choice(tuple(PALETTE)))


def identity_of(draws: np.random.Generator, kind: str, names: Mapping[str, str]) -> Identity:
    """A subject with these colours, in shades of its own."""
    colours = {}
    for part, name in names.items():
        shade = np.clip(np.array(PALETTE[name]) + draws.normal(0.0, SHADES, 3), 0.0, 1.0)
        colours[part] = tuple(float(channel) for channel in shade)
    return Identity(kind, names, colours)


def random_scene(draws: np.random.Generator, style: str | None = None) -> Scene:
    """A scene with every part drawn evenly."""
    return Scene(
        style or str(draws.choice(STYLES)),
        str(draws.choice(BACKGROUNDS)),
        str(draws.choice(PROPS)),
    )


def draw(subjects: Sequence[Placed], scene: Scene) -> Picture:
    """The one right picture."""
    picture = _BACKGROUNDS[scene.background].copy()
    if scene.prop != "nothing":
        where, colour = _PROPS[scene.prop]
        picture[where] = colour
    for subject in subjects:
        labels, patch = _covered(subject, picture)
        inside = labels >= 0
        patch[inside] = _colours_of(subject.identity)[labels[inside]]
    return _STYLES[scene.style](picture).astype(np.float32)


def reference_picture(draws: np.random.Generator, identity: Identity) -> tuple[Picture, Placed]:
    """A photograph of somebody, somewhere; and where in it the subject is."""
    subject = Placed(identity, str(draws.choice(tuple(PLACES))))
    return draw([subject], random_scene(draws, "photo")), subject


def subject_mask(subject: Placed) -> NDArray[np.bool_]:
    """Where the subject is, `[32, 32]`."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    labels, patch = _covered(subject, mask)
    patch[:] = labels >= 0
    return mask


def part_map(subject: Placed) -> NDArray[np.int64]:
    """Which of its kind's parts each pixel shows, `[32, 32]`; -1 where it shows none."""
    whole = np.full((SIZE, SIZE), -1)
    labels, patch = _covered(subject, whole)
    patch[:] = np.where(labels < len(PARTS[subject.identity.kind]), labels, -1)
    return whole


def caption(
    subjects: Sequence[Placed],
    scene: Scene,
    named: Sequence[Sequence[str]] | None = None,
    nouns: Sequence[str] | None = None,
    says_places: bool = True,
) -> str:
    """The words for a picture: the scene, then the subjects from left to right.

    A text encoder of CLIP's kind reads from left to right, and so nothing but the noun and what
    follows it can know a colour that is said before the noun.

    Args:
        named: for each subject the parts whose colours are said; none without it.
        nouns: what each subject is called, `{subject}` say; its kind without it.
        says_places: whether it says where each stands.
    """
    prop = "" if scene.prop == "nothing" else f" under a {scene.prop}"
    words = f"a {scene.style} in the {scene.background}{prop}"
    for index, subject in enumerate(subjects):
        noun = nouns[index] if nouns else subject.identity.kind
        parts = [
            f"{subject.identity.names[part]} {part}" for part in (named[index] if named else ())
        ]
        having = f" with {' and '.join(parts)}" if parts else ""
        place = f"at the {subject.place} " if says_places else ""
        words += f", {place}{noun}{having}"
    return words


def _sprite(kind: str) -> NDArray[np.int64]:
    rows = _SPRITES[kind].strip("\n").split("\n")
    letters = _letters(kind)
    return np.array([[letters.find(c) for c in row.ljust(12)] for row in rows])


def _letters(kind: str) -> str:
    return "".join(PARTS[kind].values()) + "".join(_FIXED)


_SPRITES_OF = {kind: _sprite(kind) for kind in KINDS}


def _covered(subject: Placed, picture: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The sprite's labels, -1 where it shows nothing, and the part of a picture that it covers."""
    labels, left = _SPRITES_OF[subject.identity.kind], PLACES[subject.place]
    return labels, picture[SIZE - labels.shape[0] :, left : left + labels.shape[1]]


def _colours_of(identity: Identity) -> NDArray[np.float64]:
    return np.array([*identity.colours.values(), *_FIXED.values()])


def _band(*bands: tuple[int, tuple[float, float, float]]) -> Picture:
    """A picture of horizontal bands: the row where each ends, and its colour."""
    picture, top = np.zeros((SIZE, SIZE, 3), np.float32), 0
    for end, colour in bands:
        picture[top:end] = colour
        top = end
    return picture


def _forest() -> Picture:
    picture = _band((24, (0.62, 0.80, 0.92)), (SIZE, (0.30, 0.48, 0.18)))
    for centre in range(2, SIZE, 7):
        for row in range(8, 24):
            half = (row - 6) // 5
            picture[row, max(0, centre - half) : centre + half + 1] = (0.10, 0.36, 0.16)
        picture[22:26, centre] = (0.36, 0.24, 0.14)
    return picture


def _beach() -> Picture:
    picture = _band((14, (0.72, 0.90, 0.98)), (22, (0.16, 0.52, 0.70)), (SIZE, (0.92, 0.84, 0.60)))
    picture[15:22:3, 0::4] = (0.85, 0.95, 1.0)
    return picture


def _city() -> Picture:
    picture = _band((26, (0.80, 0.80, 0.84)), (SIZE, (0.38, 0.38, 0.40)))
    for left, width, top in ((0, 6, 10), (7, 5, 6), (13, 7, 12), (21, 5, 8), (27, 5, 11)):
        picture[top:26, left : left + width] = (0.52, 0.46, 0.50)
        picture[top + 2 : 24 : 4, left + 1 : left + width - 1 : 2] = (0.95, 0.88, 0.55)
    picture[29, 1::6] = picture[29, 2::6] = (0.9, 0.9, 0.9)
    return picture


def _desert() -> Picture:
    picture = _band((18, (0.98, 0.82, 0.62)), (SIZE, (0.84, 0.58, 0.34)))
    for column in range(SIZE):
        top = 18 - round(2.5 * (1 + np.sin(column / 4.0)))
        picture[top:18, column] = (0.76, 0.50, 0.34)
    picture[21:27, 16:18] = picture[23, 14:20] = (0.22, 0.50, 0.30)
    return picture


_BACKGROUNDS = {"forest": _forest(), "beach": _beach(), "city": _city(), "desert": _desert()}


def _disc(row: float, column: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.indices((SIZE, SIZE))
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def _diamond() -> NDArray[np.bool_]:
    rows, columns = np.indices((SIZE, SIZE))
    return np.abs(rows - 3) + np.abs(columns - 15) <= 3


_PROPS = {
    "sun": (_disc(2.5, 27.5, 2.6), (1.0, 0.86, 0.20)),
    "moon": (_disc(2.5, 4.5, 2.6), (0.98, 0.98, 0.90)),
    "kite": (_diamond(), (0.90, 0.25, 0.55)),
}


def _sketch(picture: Picture) -> Picture:
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    return (0.1 + 0.9 * grey[..., None]) * np.array([1.0, 0.97, 0.90], np.float32)


_STYLES = {
    "photo": lambda picture: picture,
    "negative": lambda picture: 1.0 - picture,
    "sketch": _sketch,
    "night": lambda picture: picture * (0.42, 0.48, 0.72) + (0.0, 0.01, 0.07),
}
