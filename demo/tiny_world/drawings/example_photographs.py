"""Draws the pictures of the node *Example Photograph* into nodes/photographs.

    python dev.py exec demo/tiny_world/drawings/example_photographs.py

Subjects of the tiny world, each pixel enlarged to a square, with a mask of each; and a pose of two
people in the colours of OpenPose.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[3]
# Behind everything else: nothing of the demo may hide another module.
sys.path.append(str(ROOT / "demo"))

from tiny_world.sheet import enlarged, to_image  # noqa: E402
from tiny_world.world import (  # noqa: E402
    PARTS,
    Identity,
    Placed,
    Scene,
    draw,
    identity_of,
    subject_mask,
)

FOLDER = ROOT / "nodes" / "photographs"
SIDE = 512
# Who is in the pictures, where, and before what.
SUBJECTS = {
    "anna": ("person", ("red", "black", "yellow", "blue"), Scene("photo", "beach", "nothing")),
    "ben": ("person", ("green", "orange", "purple", "white"), Scene("photo", "city", "nothing")),
    "rex": ("dog", ("purple", "orange", "green", "white"), Scene("photo", "forest", "nothing")),
    "bella": ("dog", ("black", "white", "red", "pink"), Scene("photo", "desert", "nothing")),
}
PLACE = "centre"

# OpenPose's 18 joints of one person who stands and faces us, in the unit square, and its bones.
JOINTS = (
    *((0.50, 0.14), (0.50, 0.25)),  # nose, neck
    *((0.36, 0.26), (0.26, 0.40), (0.20, 0.54)),  # right arm, which is at our left
    *((0.64, 0.26), (0.74, 0.40), (0.80, 0.54)),
    *((0.41, 0.53), (0.40, 0.73), (0.39, 0.93)),  # right leg
    *((0.59, 0.53), (0.60, 0.73), (0.61, 0.93)),
    *((0.46, 0.11), (0.54, 0.11), (0.41, 0.13), (0.59, 0.13)),  # eyes, ears
)
BONES = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
POSE = "two_people_pose"
POSE_OFFSETS = (-0.23, 0.23)  # of the two people from the middle
SLENDER = 0.62  # the width of both, so that they stand apart
BONE_WIDTH, JOINT_RADIUS = 8, 5
BONE_BRIGHTNESS = 0.6  # of the joints' colours


def main() -> None:
    (FOLDER / "masks").mkdir(parents=True, exist_ok=True)
    for name, image in pictures():
        path = FOLDER / f"{name}.png"
        image.save(path, optimize=True)
        print(f"{path.relative_to(ROOT)}: {image.width} x {image.height}, {path.stat().st_size} B")


def pictures() -> Iterator[tuple[str, Image.Image]]:
    """Every file's name without its ending, and what is in it."""
    for name, (_, _, scene) in SUBJECTS.items():
        placed = Placed(identity(name), PLACE)
        yield name, with_palette(enlarged(to_image(draw([placed], scene)), SIDE))
        yield f"masks/{name}", enlarged(Image.fromarray(subject_mask(placed)), SIDE)
    yield POSE, with_palette(pose())


def identity(name: str) -> Identity:
    """Who is in a picture."""
    kind, colours, _ = SUBJECTS[name]
    draws = np.random.default_rng(list(SUBJECTS).index(name))
    return identity_of(draws, kind, dict(zip(PARTS[kind], colours, strict=True)))


def with_palette(image: Image.Image) -> Image.Image:
    """The same pixels in a smaller file: there are few colours."""
    colours = image.getcolors(256)
    assert colours is not None, "more colours than a palette holds"
    small = image.quantize(len(colours), dither=Image.Dither.NONE)
    assert small.convert("RGB").tobytes() == image.tobytes()
    return small


def pose() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    for offset in POSE_OFFSETS:
        middle = 0.5 + offset
        joints = [((middle + SLENDER * (x - 0.5)) * SIDE, y * SIDE) for x, y in JOINTS]
        for number, (start, end) in enumerate(BONES):
            colour = tuple(round(BONE_BRIGHTNESS * channel) for channel in hue(number))
            pen.line((joints[start], joints[end]), colour, BONE_WIDTH)
        for number, (x, y) in enumerate(joints):
            box = (x - JOINT_RADIUS, y - JOINT_RADIUS, x + JOINT_RADIUS, y + JOINT_RADIUS)
            pen.ellipse(box, hue(number))
    return image


def hue(number: int) -> tuple[int, int, int]:
    """OpenPose's colour of a joint or bone: 18 steps around the circle of colours, from red."""
    sector, step = divmod(number, 3)
    rising, falling = step * 85, 255 - step * 85
    return (
        (255, rising, 0), (falling, 255, 0), (0, 255, rising),
        (0, falling, 255), (rising, 0, 255), (255, 0, falling),
    )[sector]  # fmt: skip


if __name__ == "__main__":
    main()
