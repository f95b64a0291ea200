"""What stays in memory behind many different graphs, with the pack's nodes and without them.

    python dev.py bench memory [graphs] [case]

Each case is a process of its own with ComfyUI's own executor and tiny random models. No two graphs
are alike: prompt, seed, size, photograph, token, noun, strength, sites and mask change, separation
and recording are on in some. The host's graphs are the same without the pack's nodes. `CLASSIC`
caching, which keeps the last graph's outputs alone, so that what grows is not ComfyUI's cache.

Columns: resident memory; on Linux the part of it that is no file's (those of libraries come and go
with what the system needs); live tensors and their size; live objects of the pack's own classes;
entries of all containers that the pack's modules hold. The last line is behind `malloc_trim`: what
the allocator had kept for itself.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import _host  # first: it starts ComfyUI
import torch

EVERY = 50
GRAPHS = int(_host.ARGUMENTS[0]) if _host.ARGUMENTS else 300
WORDS = "red old tall quiet wooden bright paper glass stone winter market river night".split()
# Environment, and which of the pack's nodes the graphs have.
CASES: dict[str, tuple[dict[str, str], str]] = {
    "the plain host": ({}, "none"),
    "subjects": ({}, "bound"),
    "subjects, separation, recording": ({}, "all"),
    "the plain host, one arena": ({"MALLOC_ARENA_MAX": "1"}, "none"),
    "subjects, separation, recording, one arena": ({"MALLOC_ARENA_MAX": "1"}, "all"),
}


class SilentServer:
    """What the executor asks of ComfyUI's server, with nobody listening."""

    client_id = last_node_id = None

    def send_sync(self, *_: Any) -> None:
        pass


def measure(nodes: str) -> None:
    import execution
    import pack

    folder = tempfile.mkdtemp()
    _prepare(folder)
    limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(SilentServer(), execution.CacheType.CLASSIC, limits)
    for number in range(GRAPHS + 1):
        if number % EVERY == 0:
            _report(str(number), pack.NAME)
        graph = _graph(number, nodes)
        outputs = [name for name, node in graph.items() if node["class_type"] == "PreviewImage"]
        executor.execute(graph, str(number), {}, outputs)
        if not executor.success:
            sys.exit(f"graph {number} failed: {executor.status_messages[-1]}")
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _report("trimmed", pack.NAME)


def _prepare(folder: str) -> None:
    """The tiny models' loaders, an encoder file, and a place for previews."""
    import asyncio

    import comfy.utils
    import folder_paths
    import pack
    import scenes

    import nodes

    loaders = str(_host.ROOT / "demo/custom_nodes/tiny_models")
    assert asyncio.run(nodes.load_custom_node(loaders))
    extras = os.path.join(os.path.dirname(nodes.__file__), "comfy_extras", "nodes_mask.py")
    assert asyncio.run(nodes.load_custom_node(extras, module_parent="comfy_extras"))
    comfy.utils.set_progress_bar_enabled(False)
    folder_paths.set_temp_directory(folder)
    folder_paths.add_model_folder_path("nested_attention", folder)
    encoder = scenes.make_scene("sdxl").encoder
    pack.module("nested_core.checkpoint").save_encoder(
        encoder, os.path.join(folder, "tiny.safetensors")
    )


def _graph(number: int, nodes: str) -> dict[str, Any]:
    """The `number`-th graph in the API's format."""
    draws = random.Random(number)

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    tokens = [f"<{draws.choice(WORDS)}{number}{letter}>" for letter in "ab"]
    shown = tokens if nodes != "none" else ["woman", "dog"]
    prompt = f"a {draws.choice(WORDS)} picture of {shown[0]} with {shown[1]}, {number}"
    model, clip = ["checkpoint", 0], ["checkpoint", 1]
    size = {name: 64 * draws.randint(1, 3) for name in ("width", "height")}
    graph = {"checkpoint": node("TinyModels_LoadCheckpoint", family="sdxl")}
    if nodes != "none":
        graph |= _pack_nodes(draws, tokens, nodes == "all", node)
        model, clip = ["apply", 0], ["apply", 1]
    is_recorded = nodes == "all" and number % 3 == 0
    if is_recorded:
        graph["record"] = node("NestedAttention_RecordMaps", model=model, values=bool(number % 2))
        model = ["record", 0]
    graph |= {
        "positive": node("CLIPTextEncode", clip=clip, text=prompt),
        "negative": node("CLIPTextEncode", clip=clip, text=draws.choice(WORDS)),
        "latent": node("EmptyLatentImage", **size, batch_size=draws.randint(1, 2)),
        "sampler": node(
            "KSampler",
            model=model,
            seed=number,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "picture": node("PreviewImage", images=["decoded", 0]),
    }
    if is_recorded:
        graph["maps"] = node(
            "NestedAttention_ShowMaps", record=["record", 1], samples=["sampler", 0]
        )
        graph["sheet"] = node("PreviewImage", images=["maps", 0])
    return graph


def _pack_nodes(
    draws: random.Random, tokens: list[str], with_separation: bool, node: Any
) -> dict[str, Any]:
    graph = {
        "encoder": node("NestedAttention_LoadEncoder", encoder_name="tiny.safetensors"),
        "vision": node("TinyModels_LoadClipVision"),
        "mask": node("SolidMask", value=draws.random(), width=draws.randint(8, 64), height=32),
    }
    for place, token in enumerate(tokens):
        graph[f"photograph{place}"] = node(
            "EmptyImage", width=40, height=50, batch_size=1, color=draws.randrange(2**24)
        )
        graph[f"subject{place}"] = node(
            "NestedAttention_EncodeSubject",
            encoder=["encoder", 0],
            image=[f"photograph{place}", 0],
            clip_vision=["vision", 0],
        )
        masked = {"mask": ["mask", 0]} if draws.random() < 0.5 else {}
        graph[f"binding{place}"] = node(
            "NestedAttention_BindSubject",
            subject=[f"subject{place}", 0],
            token=token,
            noun=("woman", "dog")[place],
            strength=draws.uniform(0.5, 1.5),
            sites=draws.choice(["", "u", "!d"]),
            **masked,
        )
    graph["apply"] = node(
        "NestedAttention_Apply",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        separation=float(with_separation and draws.random() < 0.5),
        **{f"bindings.binding_{place}": [f"binding{place}", 0] for place in range(len(tokens))},
    )
    return graph


def _report(name: str, pack_name: str) -> None:
    gc.collect()
    tensors, sizes, objects = 0, 0, Counter[str]()
    for each in gc.get_objects():
        kind = type(each)
        if issubclass(kind, torch.Tensor):
            tensors += 1
            sizes += each.numel() * each.element_size()
        elif str(kind.__module__).startswith(f"{pack_name}."):
            objects[kind.__name__] += 1
    resident, own = (each / 2**20 for each in _resident_bytes())
    most = ", ".join(f"{kind} {count}" for kind, count in objects.most_common(5))
    print(
        f"{name:>8} {resident:7.0f} MB {own:7.0f} MB own {tensors:6} tensors "
        f"{sizes / 2**20:6.1f} MB  {objects.total():5} objects ({most})  "
        f"{sum(_containers(pack_name)):5} entries",
        flush=True,
    )


def _containers(pack_name: str) -> Iterator[int]:
    """The sizes of everything that a module of the pack holds and that could grow."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(f"{pack_name}."):
            for name, value in vars(module).items():
                if hasattr(value, "cache_info"):
                    yield value.cache_info().currsize
                elif not name.startswith("__") and _can_grow(value):
                    yield len(value)


def _can_grow(value: Any) -> bool:
    is_fixed = isinstance(value, (str, bytes, tuple, frozenset, type, torch.Tensor))
    return isinstance(value, (Sized, Mapping)) and not is_fixed


def _resident_bytes() -> tuple[float, float]:
    """All, and what is no file's; the second is NaN where the system does not tell."""
    import psutil  # ComfyUI's own

    found = psutil.Process().memory_info()
    return found.rss, found.rss - found.shared if sys.platform == "linux" else float("nan")


def main() -> None:
    if len(_host.ARGUMENTS) > 1:
        return measure(CASES[_host.ARGUMENTS[1]][1])
    for case, (environment, _) in CASES.items():
        print(case, flush=True)
        launcher = _host.ROOT / "devtools" / "launch.py"
        subprocess.run(
            [sys.executable, str(launcher), __file__, str(GRAPHS), case],
            env={**os.environ, **environment},
            check=True,
        )


if __name__ == "__main__":
    main()
