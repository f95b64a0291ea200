"""What each method makes of the same prompt. The prompts are not chosen."""

from __future__ import annotations

from PIL import Image
from tiny_world import world

from .picture_grid import Line, picture_grid
from .results import Results

_SHOWN = ("none", "named", "one_token", "decoupled", "nested_16", "shipped")


def example_sheet(results: Results) -> Image.Image | None:
    """Of the first person and the first dog, in every style."""
    shown = results.measured(_SHOWN)
    if not shown:
        return None
    fewest = min(results.scores[name].identities for name in shown)
    subjects = results.evaluation.subjects(fewest)
    kinds = [subject.identity.kind for subject in subjects]
    drawn = [results.pictures(name, fewest) for name in shown]
    lines = [
        Line(
            [subjects[index].photograph],
            [prompt.target, *(pictures[index, number] for pictures in drawn)],
            prompt.caption(["<subject>"]),
        )
        for index in (kinds.index(kind) for kind in world.KINDS if kind in kinds)
        for number, prompt in enumerate(subjects[index].prompts)
    ]
    return picture_grid(["photograph", "right answer", *shown], lines, cell=128)
