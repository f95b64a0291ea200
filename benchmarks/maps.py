"""What separation and recorded maps cost per step, on a UNet of SD1.5's full size.

    python dev.py bench maps [rounds]

Weights are random, and so the pictures; the arithmetic is that of the real model. The text encoder
is narrow, which leaves out a part of the keys and values of the prompt.

Each round runs every case once, right after the other, and the cost is the median over rounds of
the ratio within a round: a busy moment of the machine meets neighbours alike. Every round begins
with another case: what runs behind a long pause or a heavier case is not the same. On a CPU the
time is that of the processor and not of the clock, which other processes would share. Rounds differ
by several per cent all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import _host  # first: it starts ComfyUI
import comfy.model_management
import numpy as np
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
STEPS, SIZE = 2, 32
ROUNDS = int(_host.ARGUMENTS[0]) if _host.ARGUMENTS else 5
BASELINE = "two subjects"


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
        BASELINE: bound,
        "two subjects, separation": separated,
        "two subjects, all maps recorded": pack.run("RecordMaps", model=bound, values=False)[0],
        "two subjects, all maps and values recorded": pack.run("RecordMaps", model=bound)[0],
    }
    positive, negative = scene.encode(clip, PROMPT), scene.encode(clip, "blurry")

    def sample(name: str, steps: int) -> None:
        scene.sample(cases[name], positive, negative, steps=steps)

    for name in cases:
        sample(name, 1)
    names, times = list(cases), {name: np.empty(ROUNDS) for name in cases}
    for each in range(ROUNDS):
        for name in (*names[each % len(names) :], *names[: each % len(names)]):
            times[name][each] = _seconds(partial(sample, name, STEPS)) / STEPS
    for name, found in times.items():
        _host.report(f"one step of {STEPS} at {SIZE * 8} px, {name}", float(np.median(found)))
        low, median, high = np.percentile(100.0 * (found / times[BASELINE] - 1.0), (25, 50, 75))
        print(
            f"    against {BASELINE}: {median:+.1f} % (half of the rounds {low:+.1f} to {high:+.1f})"
        )


def _seconds(action: Callable[[], None]) -> float:
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    started = clock()
    action()
    return clock() - started


if __name__ == "__main__":
    with torch.inference_mode():
        measure()
