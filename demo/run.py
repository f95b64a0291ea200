"""The demo: subjects that nobody has seen, drawn into new pictures by a real ComfyUI server.

A person (`<anna>`) and a dog (`<rex>`) of the tiny world are photographed once. The workflow
tiny_world/workflow.json then draws each prompt with this pack, and without it: the same seed, the
noun in the token's place. The world knows the one right answer to a prompt, so the pictures are
measured against it, on the subjects and elsewhere (PSNR in dB, more is better).

`--model joint` draws the same with a transformer of joint attention, a small Flux, in the UNet's place.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from client import ComfyClient, Prompt, PromptError
from tiny_world.files import FILES, UNET, WEIGHTS, MissingWeightsError, weights_file
from tiny_world.prompts import PromptTextError, Request, draw_cast, psnr, read_prompt
from tiny_world.sheet import Row, make_sheet, to_image
from tiny_world.world import Picture

WORKFLOW = Path(__file__).parent / "tiny_world" / "workflow.json"
TITLE = "One photograph, one word: Nested Attention in the tiny world"
PROMPTS = (
    "a photo in the forest under a sun, at the left <anna>",
    "a photo in the beach under a kite, at the right <rex>",
    "a night in the city under a moon, at the right <anna>",
    "a night in the desert, at the centre <rex>",
    "a sketch in the beach under a sun, at the centre <anna>",
    "a negative in the forest, at the left <rex>",
    "a photo in the desert under a sun, at the left <anna>, at the right <rex>",
    "a negative in the city under a kite, at the left <rex>, at the right <anna>",
)


def main() -> int:
    options = parse_arguments()
    started = time.monotonic()
    cast, photographs = draw_cast(options.seed)
    try:
        requests = [read_prompt(text, cast) for text in options.prompt or PROMPTS]
        base = Path(os.environ["NESTED_ATTENTION_BASE_DIRECTORY"])
        prepare(base, photographs, options.model)
        rows = asyncio.run(draw_all(options.server, requests, options.seed, options.model))
    except (MissingWeightsError, PromptTextError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except PromptError as error:
        print(f"demo: ComfyUI could not run the workflow: {error}", file=sys.stderr)
        return 1
    figures = report(rows)
    make_sheet(rows, photographs, TITLE).save(options.output)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"demo: done in {seconds:.1f} s; the picture is {options.output.absolute()}")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--prompt",
        action="append",
        help="draw this instead of the demo's prompts; may be given several times, and must be "
        f"one that the world has a right answer to, such as '{PROMPTS[0]}'",
    )
    parser.add_argument(
        "--model", choices=FILES, default=UNET, help="which base model; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the subjects and of the sampler")
    parser.add_argument(
        "--output", type=Path, default=Path("demo.png"), help="the picture; default: %(default)s"
    )
    parser.add_argument("--json", type=Path, help="also write the mean PSNRs to this file")
    options = parser.parse_args()
    for path in filter(None, (options.output, options.json)):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path}: its folder does not exist; make it, or name another one.")
    return options


def prepare(base: Path, photographs: Mapping[str, Picture], model: str = UNET) -> None:
    """Puts the encoder and the photographs where the server looks for them."""
    encoders, pictures = base / "models" / "nested_attention", base / "input"
    for folder in (encoders, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    name = load_workflow(model)["encoder"]["inputs"]["encoder_name"]
    weights_file(WEIGHTS, FILES[model].base)  # better missed here than by the server
    shutil.copyfile(weights_file(WEIGHTS, FILES[model].encoder), encoders / name)
    for token, photograph in photographs.items():
        to_image(photograph).save(pictures / f"{token.strip('<>')}.png")


def load_workflow(model: str = UNET) -> Prompt:
    """The workflow of the UNet, or the same with a transformer and its encoder."""
    graph: Prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    if model != UNET:
        graph["checkpoint"] = {
            "class_type": "TinyWorld_LoadTransformer",
            "inputs": {"model_name": model},
            "_meta": {"title": "Load Tiny World Transformer"},
        }
        graph["encoder"]["inputs"]["encoder_name"] = f"tiny_world_{model}.safetensors"
    return graph


def workflow_for(prompt: str, seed: int, model: str = UNET) -> Prompt:
    """The workflow with another prompt and seed."""
    graph = load_workflow(model)
    graph["prompt"]["inputs"]["text"] = prompt
    graph["sampler"]["inputs"]["seed"] = seed
    return graph


def without_pack(graph: Prompt) -> Prompt:
    """The same workflow without this pack's nodes, and with nouns in the tokens' places."""
    plain = copy.deepcopy(graph)
    for name, node in graph.items():
        if node["class_type"] == "NestedAttention_BindSubject":
            token, noun = node["inputs"]["token"], node["inputs"]["noun"]
            text = plain["prompt"]["inputs"]["text"]
            plain["prompt"]["inputs"]["text"] = text.replace(token, noun)
        if node["class_type"].startswith("NestedAttention_"):
            del plain[name]
    bypassed = {("apply", 0): graph["apply"]["inputs"]["model"]}
    bypassed["apply", 1] = graph["apply"]["inputs"]["clip"]
    for node in plain.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = bypassed.get(tuple(value), value)
    return plain


async def draw_all(
    server: str, requests: Iterable[Request], seed: int, model: str = UNET
) -> list[Row]:
    """Every prompt with and without the pack."""
    rows: list[Row] = []
    async with ComfyClient(server) as client:
        for request in requests:
            graph = workflow_for(request.text, seed, model)
            without = await draw(client, without_pack(graph))
            with_pack = await draw(client, graph)
            figures = (psnr(each, request.right, request.mask) for each in (without, with_pack))
            rows.append(Row(request, without, with_pack, *figures))
            print(
                f"demo: {rows[-1].psnr_without:5.1f} -> {rows[-1].psnr_with:5.1f} dB on the subject  "
                f"{request.text}"
            )
    return rows


async def draw(client: ComfyClient, graph: Prompt) -> Picture:
    outputs = await client.run(graph)
    image = await client.read_image(outputs["save"]["images"][0])
    return np.asarray(image, np.float32) / 255.0


def report(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Prints and returns the mean PSNRs over the prompts, in dB."""
    subject = [(row.psnr_without, row.psnr_with) for row in rows]
    background = [
        [psnr(each, row.request.right, ~row.request.mask) for each in (row.without, row.with_pack)]
        for row in rows
    ]
    figures = {}
    print("demo: mean PSNR in dB        without the pack   with the pack")
    for name, where, found in (
        ("subject_psnr", "on the subject", subject),
        ("background_psnr", "off the subject", background),
    ):
        without, with_pack = map(float, np.mean(found, axis=0))
        print(f"demo: {where:23}{without:16.1f}{with_pack:16.1f}")
        figures[name] = {"without": round(without, 2), "with": round(with_pack, 2)}
    return figures


if __name__ == "__main__":
    sys.exit(main())
