"""The demo: a person and a dog from two pictures, drawn together, on a real ComfyUI server.

`python dev.py demo` starts the server and this script. The models are tiny and their weights random,
so the picture shows that the whole way works, not yet what it is for.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from client import ComfyClient, Prompt, PromptError

HERE = Path(__file__).parent
PROMPT = "a pencil drawing of <anna> with <rex> in a coffee shop"
ENCODER_NAME = "demo.safetensors"

# The cross-attention layers of the demo's tiny SDXL, with their widths.
SITES = [("input", 3, 1), ("input", 5, 2), ("middle", 0, 2), ("output", 0, 2)]
SITES += [("output", 1, 2), ("output", 2, 1), ("output", 3, 1)]
SITE_WIDTH = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__)
    parser.add_argument("--server", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("demo.png"), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    base = Path(os.environ["NESTED_ATTENTION_BASE_DIRECTORY"])
    prepare(base)
    try:
        asyncio.run(draw(options))
    except PromptError as error:
        print(f"demo: ComfyUI could not run the workflow: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(base: Path) -> None:
    """Puts the photographs and an encoder where the server looks for them."""
    for photo in sorted((HERE / "photos").glob("*.jpg")):
        (base / "input").mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, base / "input")
    folder = base / "models" / "nested_attention"
    folder.mkdir(parents=True, exist_ok=True)
    core = load_core(HERE.parent)
    core.checkpoint.save_encoder(random_encoder(core), folder / ENCODER_NAME)


def random_encoder(core: Any) -> Any:
    """An encoder of the right shape for the demo's models, its weights from a seed."""
    torch.manual_seed(0)
    config = core.config.EncoderConfig(
        noun="person",
        base="tiny sdxl",
        image_encoder=core.config.ImageEncoderConfig(hidden_size=24, image_size=32),
        resampler=core.config.ResamplerConfig(24, 24, 2, 8, 2, 16, 48, 2),
        value_norm=core.attention.ValueNorm("per_head", 2.0),
    )
    sites = {
        core.sites.AttentionSite(block, number, index): SITE_WIDTH
        for block, number, depth in SITES
        for index in range(depth)
    }
    return core.encoder.Encoder(config, sites, name=ENCODER_NAME)


def load_core(root: Path) -> Any:
    """`nested_core` by its folder: the repository's root on the path would hide ComfyUI's nodes."""
    if "nested_core" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "nested_core", root / "nested_core" / "__init__.py"
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["nested_core"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["nested_core"])
    for name in ("attention", "checkpoint", "config", "encoder", "sites"):
        importlib.import_module(f"nested_core.{name}")
    return sys.modules["nested_core"]


def workflow(prompt: str, seed: int) -> Prompt:
    """The graph: one checkpoint, two photographs, two words."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    graph = {
        "checkpoint": node("TinyModels_LoadCheckpoint", family="sdxl"),
        "vision": node("TinyModels_LoadClipVision"),
        "encoder": node("NestedAttention_LoadEncoder", encoder_name=ENCODER_NAME),
        "apply": node("NestedAttention_Apply", model=["checkpoint", 0], clip=["checkpoint", 1]),
        "positive": node("CLIPTextEncode", text=prompt, clip=["apply", 1]),
        "negative": node("CLIPTextEncode", text="blurry", clip=["apply", 1]),
        "latent": node("EmptyLatentImage", width=256, height=192, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["apply", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=seed,
            steps=12,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="nested_attention_demo"),
    }
    for index, (name, token, noun) in enumerate(
        (("anna", "<anna>", "woman"), ("rex", "<rex>", "dog"))
    ):
        graph[f"{name} photo"] = node("LoadImage", image=f"{name}.jpg")
        graph[f"{name} subject"] = node(
            "NestedAttention_EncodeSubject",
            encoder=["encoder", 0],
            image=[f"{name} photo", 0],
            clip_vision=["vision", 0],
            crop="center",
            combine="concatenate",
        )
        graph[f"{name} binding"] = node(
            "NestedAttention_BindSubject",
            subject=[f"{name} subject", 0],
            token=token,
            noun=noun,
            strength=1.0,
            token_weight=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        graph["apply"]["inputs"][f"bindings.binding_{index}"] = [f"{name} binding", 0]
    return graph


async def draw(options: argparse.Namespace) -> None:
    started = time.monotonic()
    print(f"demo: drawing '{options.prompt}'")
    async with ComfyClient(options.server) as client:
        outputs = await client.run(workflow(options.prompt, options.seed), show_progress)
        await client.save_image(outputs["save"]["images"][0], options.output)
    print(
        f"demo: done in {time.monotonic() - started:.1f} s; the picture is {options.output.absolute()}"
    )


def show_progress(node: str, step: int, steps: int) -> None:
    print(f"demo: {node}: step {step} of {steps}")


if __name__ == "__main__":
    sys.exit(main())
