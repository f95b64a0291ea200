"""A text encoder without and with bound tokens, real embedding and LoRA files, and how to compare."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import safetensors.torch
import scenes
import tiny
import torch

SLOTS = "nested_attention"
NOUNS = {"<anna>": "woman", "<rex>": "black dog", "<an": "queen", "<LOUD>": "ROBOT"}


@dataclass(frozen=True)
class Clips:
    """A plain text encoder, the same with bindings, and the ids of the tokens."""

    family: str
    scene: scenes.Scene
    plain: comfy.sd.CLIP
    bound: comfy.sd.CLIP
    ids: dict[str, int]

    def encode(self, text: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Context and extras from the bound encoder."""
        ((context, extras),) = self.scene.encode(self.bound, text)
        return context, extras

    def slots(self, text: str) -> dict[int, str]:
        """Row of the context -> token, as the slot map has it."""
        return self.named(self.encode(text)[1])

    def named(self, extras: dict[str, Any]) -> dict[int, str]:
        return named(slots_of(extras), self.ids)


def slots_of(extras: dict[str, Any]) -> dict[int, int]:
    """Row -> binding id."""
    conds = extras.get("model_conds", {})
    row_ids = conds[SLOTS].cond.flatten().tolist() if SLOTS in conds else []
    return {row: each for row, each in enumerate(row_ids) if each}


def named(slots: dict[int, int], ids: dict[str, int]) -> dict[int, str]:
    """The same with tokens instead of ids."""
    tokens = {binding_id: token for token, binding_id in ids.items()}
    return {row: tokens[binding_id] for row, binding_id in slots.items()}


@functools.cache
def clips_of(family: str) -> Clips:
    scene = scenes.make_scene(family)
    bindings = [scene.bind(token=token, noun=noun) for token, noun in NOUNS.items()]
    ids = {token: binding.id for token, binding in zip(NOUNS, bindings, strict=True)}
    folder = _embeddings()
    for inner in vars(scene.clip.tokenizer).values():
        if hasattr(inner, "embedding_directory"):
            inner.embedding_directory = folder
    return Clips(family, scene, scene.clip, scene.apply(*bindings)[1], ids)


@functools.cache
def _embeddings() -> list[str]:
    """Real textual-inversion files where ComfyUI looks for them."""
    folders = folder_paths.get_folder_paths("embeddings")
    generator = torch.Generator().manual_seed(4)
    right = {"clip_l": tiny.CLIP_L_WIDTH, "clip_g": tiny.CLIP_G_WIDTH}
    files = {
        "good": {key: (1, width) for key, width in right.items()},
        "triple": {key: (3, width) for key, width in right.items()},
        "woman": {key: (1, width) for key, width in right.items()},
        # One made for SD1.5 alone, whose vectors SDXL's G leaves out ...
        "sd15": {"emb_params": (2, tiny.CLIP_L_WIDTH)},
        # ... and one for another encoder, which nobody can use.
        "wrong": {"emb_params": (2, 20)},
    }
    Path(folders[0]).mkdir(parents=True, exist_ok=True)
    for name, shapes in files.items():
        vectors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        safetensors.torch.save_file(vectors, Path(folders[0], f"{name}.safetensors"))
    return folders


def with_nouns(text: str) -> str:
    """The prompt that a user without subjects would write."""
    return "".join(NOUNS.get(piece, piece) for piece in split_at_tokens(text))


def split_at_tokens(text: str) -> list[str]:
    """Tokens at the odd places, longest first."""
    return re.split(f"({'|'.join(sorted(map(re.escape, NOUNS), key=len, reverse=True))})", text)


def assert_reads_the_noun_prompt(clips: Clips, text: str, plain: str | None = None) -> None:
    """Same tokens, weights, chunks and word ids as ComfyUI gives the noun prompt; same encoding."""
    plain = with_nouns(text) if plain is None else plain
    for word_ids in (False, True):
        found = clips.bound.tokenize(text, return_word_ids=word_ids)
        expected = clips.plain.tokenize(plain, return_word_ids=word_ids)
        assert list(found) == list(expected)
        for key in expected:
            assert len(found[key]) == len(expected[key])
            for chunk, other in zip(found[key], expected[key], strict=True):
                assert [item[1:] for item in chunk] == [item[1:] for item in other]
                assert all(is_same(a[0], b[0]) for a, b in zip(chunk, other, strict=True))
    context, extras = clips.encode(text)
    ((expected_context, expected_extras),) = clips.scene.encode(clips.plain, plain)
    assert torch.equal(context, expected_context)
    assert torch.equal(extras["pooled_output"], expected_extras["pooled_output"])
    assert extras.keys() - {"model_conds"} == expected_extras.keys()


def is_same(token: Any, other: Any) -> bool:
    if isinstance(token, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(token, other)
    return isinstance(token, int) and not isinstance(other, torch.Tensor) and int(token) == other


@functools.cache
def lora_file(family: str) -> str:
    """A LoRA of rank 2 for text attention in the UNet and in every text encoder."""
    scene = clips_of(family).scene
    generator = torch.Generator().manual_seed(8)
    weights: dict[str, torch.Tensor] = {}
    unet, text = scene.model.model.state_dict(), scene.clip.cond_stage_model.state_dict()
    targets = {
        **{key: value for key, value in unet.items() if key.endswith("attn2.to_k.weight")},
        **{
            f"text_encoders.{key}": value
            for key, value in text.items()
            if key.endswith("self_attn.v_proj.weight")
        },
    }
    assert len(targets) > 4
    for key, value in targets.items():
        name = key.removesuffix(".weight")
        rows, columns = value.shape
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) * 0.3
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator) * 0.3
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, folder / f"{family}.safetensors")
    folder_paths.filename_list_cache.clear()
    return f"{family}.safetensors"
