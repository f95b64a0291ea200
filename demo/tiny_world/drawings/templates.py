"""The pack's templates for the tiny world: the same nodes and wires, with models that come along.

    python dev.py exec demo/tiny_world/drawings/templates.py

writes them into demo/custom_nodes/tiny_world/example_workflows, where ComfyUI's gallery finds them.
Those with a ControlNet are left out, as the tiny world has none, and so is the one whose single node
reads a CLIP vision file: ComfyUI does not read one as small.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
THEIRS = ROOT / "example_workflows"
OURS = ROOT / "demo" / "custom_nodes" / "tiny_world" / "example_workflows"
ENCODER_NAME = "tiny_world.safetensors"

Graph = dict[str, Any]

PROMPTS: Mapping[str, str] = {
    "one_subject": "a night in the city under a moon, at the left <anna>",
    "two_subjects": "a photo in the forest under a sun, at the left <anna>, at the right <rex>",
    "attention_maps": "a photo in the city under a moon, at the left <anna>, at the right <rex>",
    "save_subject": "",
    "reuse_subject": "a sketch in the beach under a sun, at the centre <anna>",
}
PREFIX = "tiny_world_anna"
_LOADERS = {
    "CheckpointLoaderSimple": "TinyWorld_LoadCheckpoint",
    "CLIPVisionLoader": "TinyWorld_LoadClipVision",
}
_WIDGETS = {
    "NestedAttention_LoadEncoder": [ENCODER_NAME],
    "NestedAttention_LoadSubject": [f"{PREFIX}_00001_.safetensors"],
    "NestedAttention_SaveSubject": [PREFIX],
    "EmptyLatentImage": [32, 32, 1],
    # Without guidance, and with the steps and the schedule that the tiny world is measured with.
    "KSampler": [1, "fixed", 20, 1, "euler", "simple", 1],
    "SaveImage": ["tiny_world"],
}
_NOUNS = {"woman": "person"}  # the world knows no other word for people
_NOTE = (
    "\n\nThis is the template of the same name for the tiny world: its models are a few megabytes, draw "
    "32 x 32 pixels, and know nothing but the words of such prompts. Its encoder belongs in "
    f"`models/nested_attention/{ENCODER_NAME}`; `python dev.py demo` puts it there for a server of its "
    "own, and `demo/tiny_world/weights/encoder.safetensors` is the file."
)


def main() -> None:
    OURS.mkdir(exist_ok=True)
    for name in PROMPTS:
        path = OURS / f"{name}.json"
        path.write_text(text_of(name), encoding="utf-8")
        print(path.relative_to(ROOT))


def text_of(name: str) -> str:
    """The file of a template for the tiny world."""
    graph = json.loads((THEIRS / f"{name}.json").read_text(encoding="utf-8"))
    return json.dumps(for_tiny_world(graph, PROMPTS[name]), indent=1, ensure_ascii=False) + "\n"


def for_tiny_world(graph: Graph, prompt: str) -> Graph:
    """The graph with the tiny world's models, settings and words."""
    for node in graph["nodes"]:
        kind = node["type"]
        if kind in _LOADERS:
            node["type"] = _LOADERS[kind]
            node["properties"] = {"Node name for S&R": node["type"]}
            node["inputs"], node["widgets_values"] = [], []
        elif kind == "CLIPTextEncode":
            node["widgets_values"] = [prompt if node["title"] == "Prompt" else ""]
        elif kind == "NestedAttention_BindSubject":
            token, noun, *rest = node["widgets_values"]
            node["widgets_values"] = [token, _NOUNS.get(noun, noun), *rest]
        elif kind == "MarkdownNote":
            (text,) = node["widgets_values"]
            node["widgets_values"] = [text.partition("\n\nFiles:")[0] + _NOTE]
        elif kind in _WIDGETS:
            node["widgets_values"] = _WIDGETS[kind]
    return graph


if __name__ == "__main__":
    sys.exit(main())
