"""Draws the pictures of the templates, example_workflows/*.jpg, with the tiny world's models.

    python dev.py exec demo/tiny_world/drawings/template_pictures.py

starts a ComfyUI of its own and runs the tiny world's templates in it. Each picture shows what goes in,
the prompt, and what came out, and says that the tiny world drew it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
# Behind everything else: nothing of the demo may hide another module.
sys.path.append(str(ROOT / "demo"))

from client import ComfyClient, Prompt  # noqa: E402

from tiny_world.drawings import templates  # noqa: E402
from tiny_world.drawings.card import Card, card_picture  # noqa: E402
from tiny_world.drawings.server import module_at, tiny_world_server  # noqa: E402

FOLDER = ROOT / "example_workflows"
PHOTOGRAPHS = ROOT / "nodes" / "photographs"
QUALITY = 80
NO_CONTROL = "tiny world, without a ControlNet: the words say where"
NOTHING_DRAWN = "the photograph is a drawing of the tiny world"
SAVED = "anna_00001_.safetensors"


@dataclass(frozen=True)
class Job:
    """How the picture of a template is made.

    Attributes:
        template: the tiny world's template that is run.
        prompt: instead of its own; None for its own. Words to show where it has none.
        shown: the photographs that are shown, by what is written under them.
        changes: widget values to put in the place of others, by input.
        caption: instead of the usual one.
    """

    template: str
    shown: Mapping[str, str]
    prompt: str | None = None
    changes: Mapping[str, Mapping[str, str]] | None = None
    caption: str = "drawn by the models of the tiny world, 32 x 32 pixels"


ANNA, BOTH = {"<anna>": "anna"}, {"<anna>": "anna", "<rex>": "rex"}
JOBS = {
    "quick_subject": Job(
        "one_subject", ANNA, "a photo in the desert under a kite, at the right <anna>"
    ),
    "one_subject": Job("one_subject", ANNA),
    "two_subjects": Job("two_subjects", BOTH),
    "two_subjects_with_pose": Job(
        "two_subjects",
        {"<anna>": "anna", "<ben>": "ben", "pose": "two_people_pose"},
        "a photo in the city under a sun, at the left <anna>, at the right <ben>",
        {"photograph": {"rex": "ben"}, "token": {"<rex>": "<ben>"}, "noun": {"dog": "person"}},
        NO_CONTROL,
    ),
    "one_subject_with_controlnet": Job(
        "one_subject",
        {"<anna>": "anna", "outlines": "ben"},
        "a sketch in the forest, at the centre <anna>",
        caption=NO_CONTROL,
    ),
    "attention_maps": Job("attention_maps", BOTH),
    "save_subject": Job("save_subject", ANNA, "kept in models/nested_subjects"),
    "reuse_subject": Job("reuse_subject", {}),
}
# Of the transformers' templates: prompts for the tiny world, which draws for them all.
_FAMILIES = {
    "flux": "a photo in the beach under a kite, at the centre <anna>",
    "sd3": "a night in the forest under a moon, at the right <anna>",
    "qwen_image": "a sketch in the city under a sun, at the left <anna>",
    "z_image": "a photo in the desert under a moon, at the left <anna>",
    "anima": "a sketch in the beach under a kite, at the right <anna>",
    "wan": "a night in the city under a kite, at the centre <anna>",
}
JOBS |= {
    f"{family}_subject": Job(
        "one_subject",
        ANNA,
        prompt,
        caption="drawn by a tiny model, not by this one: 32 x 32 pixels",
    )
    for family, prompt in _FAMILIES.items()
}


def main() -> int:
    with tiny_world_server({}) as url:
        cards = asyncio.run(all_cards(url))
    for name, card in cards.items():
        path = FOLDER / f"{name}.jpg"
        card_picture(card).save(path, quality=QUALITY, optimize=True)
        if name in templates.PROMPTS:
            shutil.copyfile(path, templates.OURS / path.name)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} B")
    return 0


async def all_cards(server: str) -> dict[str, Card]:
    # The converter of the tests: it knows all that our templates use.
    converter = module_at("graph_to_api", ROOT / "tests" / "workflows" / "graph_to_api.py")
    async with ComfyClient(server) as client:
        node_info = await client.get("/object_info")
        return {
            name: await drawn_card(client, job, prompt_of(job, converter.api_prompt, node_info))
            for name, job in JOBS.items()
        }


def prompt_of(job: Job, api_prompt: Any, node_info: dict[str, Any]) -> Prompt:
    graph = json.loads((templates.OURS / f"{job.template}.json").read_text(encoding="utf-8"))
    text = templates.PROMPTS[job.template]
    prompt = api_prompt(graph, node_info)
    for entry in prompt.values():
        inputs = entry["inputs"]
        if job.prompt is not None and inputs.get("text") == text:
            inputs["text"] = job.prompt
        for name, others in (job.changes or {}).items():
            if name in inputs:
                inputs[name] = others.get(inputs[name], inputs[name])
    return prompt


async def drawn_card(client: ComfyClient, job: Job, prompt: Prompt) -> Card:
    outputs = await client.run(prompt)
    pictures = {
        kind: [
            await client.read_image(image)
            for node, output in outputs.items()
            if prompt[node]["class_type"] == kind
            for image in output.get("images", [])
        ]
        for kind in ("SaveImage", "PreviewImage")
    }
    (drawn,) = pictures["SaveImage"] or [None]
    (sheet,) = pictures["PreviewImage"] or [None]
    shown = {
        label: Image.open(PHOTOGRAPHS / f"{name}.png").convert("RGB")
        for label, name in job.shown.items()
    }
    if "outlines" in shown:
        shown["outlines"] = outlines(shown["outlines"])
    text = job.prompt or templates.PROMPTS[job.template]
    file = SAVED if job.template in ("save_subject", "reuse_subject") else None
    return Card(shown, text, drawn, sheet, file, job.caption if drawn else NOTHING_DRAWN)


def outlines(picture: Image.Image) -> Image.Image:
    """Where the picture's colour changes, white on black, as wide as a reader needs."""
    small = picture.resize((picture.width // 16, picture.height // 16), Image.Resampling.NEAREST)
    lines = Image.new("RGB", picture.size)
    for x in range(small.width):
        for y in range(small.height):
            here = small.getpixel((x, y))
            if x and small.getpixel((x - 1, y)) != here:
                lines.paste((255, 255, 255), (16 * x - 3, 16 * y, 16 * x + 3, 16 * y + 16))
            if y and small.getpixel((x, y - 1)) != here:
                lines.paste((255, 255, 255), (16 * x, 16 * y - 3, 16 * x + 16, 16 * y + 3))
    return lines


if __name__ == "__main__":
    sys.exit(main())
