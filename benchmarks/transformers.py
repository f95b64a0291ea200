"""What a subject adds to a step of each family of transformers, beside what counting operations says.

    python dev.py bench transformers [--pixels SIDE] [--tokens NUMBER] [FAMILY ...]

Models have the widths of the real ones, random weights and few blocks (every block costs the same).
One row is sampled, without guidance, and its prompt holds one subject. The operations of the plain
model are counted as it runs. A subject's are those that no way around is known for, per site:

    nested attention          4 * pixels * subject tokens * inner
    A_s                       2 * pixels * keys * inner      (of the softmax that the token is in)

`share` is the added time over the added operations' share of the plain time: 1 says that a subject's
operation costs what the model's do.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import _host  # first: it starts ComfyUI
import bound_transformers
import comfy.model_management as model_management
import pack
import torch
from dit_scene import NEGATIVE, TransformerScene, make_scene
from tiny_transformers import SD3_TEXT
from torch.utils.flop_counter import FlopCounterMode

WIDTHS: dict[str, dict[str, Any]] = {
    "flux": {
        "hidden_size": 3072,
        "num_heads": 24,
        "axes_dim": [16, 56, 56],
        "mlp_ratio": 4.0,
        "depth": 1,
        "depth_single_blocks": 2,
    },
    "sd3": {
        "depth": 24,
        "num_blocks": 3,
        "mlp_ratio": 4.0,
        "x_block_self_attn_layers": [],
        "num_patches": 64**2,
        "pos_embed_max_size": 64,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": SD3_TEXT, "out_features": 1536},
        },
    },
    "qwen_image": {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "axes_dims_rope": (16, 56, 56),
        "num_layers": 2,
    },
    "lumina2": {
        "dim": 2304,
        "n_heads": 24,
        "n_kv_heads": 8,
        "axes_dims": [32, 32, 32],
        "multiple_of": 256,
        "n_layers": 3,
    },
    "z_image": {
        "dim": 3840,
        "n_heads": 30,
        "n_kv_heads": 30,
        "axes_dims": [32, 48, 48],
        "multiple_of": 256,
        "ffn_dim_multiplier": 8.0 / 3.0,
        "n_layers": 2,
    },
    "cosmos_predict2": {"model_channels": 2048, "num_heads": 16, "mlp_ratio": 4.0},
    "wan": {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "num_heads": 12},
}
LATENT_CELL, PATCH = 8, 2  # pixels, cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(WIDTHS))
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--tokens", type=int, default=256, help="of the subject")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(_host.ARGUMENTS)
    print(f"{'family':16}{'plain s':>9}{'added s':>9}{'ratio':>8}{'bound':>8}{'share':>7}")
    for family in options.families:
        measure(family, options.pixels // LATENT_CELL, options.tokens, options.repeats)


def measure(family: str, side: int, num_tokens: int, repeats: int) -> None:
    scene = make_scene(family, **WIDTHS[family])
    scene.height = scene.width = side
    scene.frames = 1
    encoder = bound_transformers.make_encoder(scene)
    tokens = torch.randn(num_tokens, bound_transformers.SUBJECT_WIDTH)
    subject = pack.module("nested_core.subject").Subject(tokens, encoder, (num_tokens,), "woman")
    model, clip = bound_transformers.apply(scene, bound_transformers.bind(subject))
    texts = {
        "plain": (scene.model, scene.encode(bound_transformers.PLAIN)),
        "bound": (model, scene.encode(bound_transformers.TEXT, clip)),
    }
    negative = scene.encode(NEGATIVE)

    base_model = scene.model.model  # both patchers' own
    apply_model = base_model.apply_model
    taken: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = _now()
        out = apply_model(*args, **kwargs)
        taken.append(_now() - started)
        return out

    base_model.apply_model = timed

    def sample(name: str) -> list[float]:
        patcher, positive = texts[name]
        taken.clear()
        scene.sample(patcher, positive, negative, cfg=1.0, steps=2)
        return list(taken)

    with FlopCounterMode(display=False) as counter:
        calls = len(sample("plain"))
    counted = counter.get_total_flops() / calls
    sample("bound")
    # In turns, so that whatever else the machine does falls on both.
    found: dict[str, list[float]] = {name: [] for name in texts}
    for _ in range(repeats):
        for name in texts:
            found[name] += sample(name)
    plain, bound = (min(found[name]) for name in texts)
    needed = added_operations(scene, num_tokens, texts["plain"][1])
    ratio, least = bound / plain, 1 + needed / counted
    share = (ratio - 1) / (least - 1)
    print(
        f"{family:16}{plain:9.3f}{bound - plain:9.3f}{ratio:8.3f}{least:8.3f}{share:7.2f}",
        flush=True,
    )


def _now() -> float:
    """Seconds that the processor worked, where it does the work; other programs do not count."""
    if model_management.get_torch_device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def added_operations(scene: TransformerScene, num_tokens: int, positive: Any) -> int:
    """In one call of the model, for one row."""
    host = pack.module("nodes.bridge.families.registry").host_family_of(scene.model)
    num_pixels = -(-scene.height // PATCH) * -(-scene.width // PATCH)
    inner = bound_transformers.make_encoder(scene).site_dims
    if scene.family == "lumina2":  # its keys have fewer heads than its queries
        inner = dict.fromkeys(inner, WIDTHS["lumina2"]["dim"])
    num_keys = scene.context(positive).shape[0] + (num_pixels if host.family.is_joint else 0)
    return sum(num_pixels * (4 * num_tokens + 2 * num_keys) * each for each in inner.values())


if __name__ == "__main__":
    with torch.inference_mode():
        main()
