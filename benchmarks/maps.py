"""What separation and recorded maps cost per step, on a UNet of SD1.5's full size.

    python dev.py bench maps

Weights are random, and so the pictures; the arithmetic is that of the real model. The text encoder
is narrow, which leaves out a part of the keys and values of the prompt.
"""

from __future__ import annotations

import statistics
import time

import _host  # first: it starts ComfyUI
import pack
import scenes
import torch

SD15_SIZE = {
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
PROMPT = "a drawing of <anna> with <bob> in a coffee shop"
STEPS, ROUNDS, SIZE = 2, 3, 32


def measure() -> None:
    scene = scenes.make_scene_of("sd15", **SD15_SIZE)
    scene.height = scene.width = SIZE
    bindings = {
        f"binding_{n}": scene.bind(scene.subject(seed=n), token=token, noun="person")
        for n, token in enumerate(("<anna>", "<bob>"))
    }

    def apply(separation: float) -> tuple[object, object]:
        return pack.run(
            "Apply",
            model=scene.model,
            clip=scene.clip,
            bindings=bindings,
            separation=separation,
        )

    bound, clip = apply(0.0)
    separated, _ = apply(1.0)
    cases = {
        "the plain model": scene.model,
        "two subjects": bound,
        "two subjects, separation": separated,
        "two subjects, all maps recorded": pack.run("RecordMaps", model=bound, values=False)[0],
        "two subjects, all maps and values recorded": pack.run("RecordMaps", model=bound)[0],
    }
    positive, negative = scene.encode(clip, PROMPT), scene.encode(clip, "blurry")
    times: dict[str, list[float]] = {name: [] for name in cases}
    for model in cases.values():
        scene.sample(model, positive, negative, steps=1)
    # In turns, so that a busy moment of the machine meets all of them.
    for _ in range(ROUNDS):
        for name, model in cases.items():
            started = time.perf_counter()
            scene.sample(model, positive, negative, steps=STEPS)
            times[name].append((time.perf_counter() - started) / STEPS)
    baseline = statistics.median(times["two subjects"])
    for name, found in times.items():
        step = statistics.median(found)
        _host.report(f"one step of {STEPS} at {SIZE * 8} px, {name}", step)
        _host.report("    against two subjects", 100.0 * (step / baseline - 1.0), "%")


if __name__ == "__main__":
    with torch.inference_mode():
        measure()
