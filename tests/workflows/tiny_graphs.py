"""What a fresh machine lacks, on models of random weights: pictures, an encoder, and a workflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from nested_core.attention import ValueNorm
from nested_core.checkpoint import save_encoder
from nested_core.config import EncoderConfig, ImageEncoderConfig, ResamplerConfig
from nested_core.encoder import Encoder
from nested_core.families import FAMILIES
from nested_core.families.unet_sites import AttentionSite
from nested_core.sites import Site

Prompt = dict[str, dict[str, Any]]

# What stands in for loaders of files that nobody has here: same outputs, same order.
LOADERS = {
    "CheckpointLoaderSimple": {
        "class_type": "TinyModels_LoadCheckpoint",
        "inputs": {"family": "sdxl"},
    },
    "CLIPVisionLoader": {"class_type": "TinyModels_LoadClipVision", "inputs": {}},
    "ControlNetLoader": {"class_type": "TinyModels_LoadControlNet", "inputs": {"family": "sdxl"}},
}
ENCODER_NAME = "random.safetensors"
VISION_NAME = "random_vision.safetensors"

# The same for loaders of a transformer's files.
TRANSFORMER_LOADERS = {
    "UNETLoader": "TinyTransformers_LoadModel",
    "CLIPLoader": "TinyTransformers_LoadClip",
    "DualCLIPLoader": "TinyTransformers_LoadClip",
    "VAELoader": "TinyTransformers_LoadVae",
    "CheckpointLoaderSimple": "TinyTransformers_LoadCheckpoint",
}
_EXAMPLE_ENCODERS = ("person_sdxl.safetensors", "pet_sdxl.safetensors")
_EXAMPLE_VISION = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
_SUBJECTS = (("anna", "<anna>", "woman"), ("rex", "<rex>", "dog"))
_PICTURES = ("anna.jpg", "rex.jpg")
# The cross-attention layers of the tiny SDXL, with their widths.
_SITES = [("input", 3, 1), ("input", 5, 2), ("middle", 0, 2), ("output", 0, 2)]
_SITES += [("output", 1, 2), ("output", 2, 1), ("output", 3, 1)]
_SITE_WIDTH = 64
# Of the tiny transformers: the family's name in encoder files, the sites, and their width.
_TRANSFORMERS = {
    "flux": ("flux", ("double.0", "double.1", "single.0", "single.1"), 32),
    "sd3": ("sd3", ("joint.0", "joint.1", "joint.2"), 128),
    "qwen_image": ("qwen_image", ("blocks.0", "blocks.1", "blocks.2"), 32),
    "z_image": ("lumina2", ("blocks.0", "blocks.1", "blocks.2"), 256),
    "anima": ("cosmos_predict2", ("blocks.0.cross", "blocks.1.cross", "blocks.2.cross"), 48),
    "wan": ("wan", ("blocks.0.cross", "blocks.1.cross", "blocks.2.cross"), 32),
}


def prepare(base: Path) -> None:
    """Puts the pictures and encoders that examples and tests name where the server looks."""
    pictures, encoders = base / "input", base / "models" / "nested_attention"
    visions = base / "models" / "clip_vision"
    for folder in (pictures, encoders, visions):
        folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(_PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((256, 256)).save(pictures / name)
    unet_dims: dict[Site, int] = {
        AttentionSite(block, number, index): _SITE_WIDTH
        for block, number, depth in _SITES
        for index in range(depth)
    }
    _save_random_encoder(encoders / ENCODER_NAME, "unet", unet_dims)
    for name, (family, paths, width) in _TRANSFORMERS.items():
        dims = {FAMILIES[family].site(path): width for path in paths}
        _save_random_encoder(encoders / f"person_{name}.safetensors", family, dims)
    for name in _EXAMPLE_ENCODERS:
        shutil.copy(encoders / ENCODER_NAME, encoders / name)
    for name in (VISION_NAME, _EXAMPLE_VISION):
        # What the tiny models' pack makes an image encoder of.
        save_file({"vision_model.embeddings.class_embedding": torch.ones(24)}, visions / name)


def _save_random_encoder(path: Path, family: str, dims: dict[Site, int]) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        noun="person",
        base="tiny",
        image_encoder=ImageEncoderConfig(hidden_size=24, image_size=32),
        resampler=ResamplerConfig(24, 24, 2, 8, 2, 16, 48, 2),
        value_norm=ValueNorm("per_head", 2.0),
        family=family,
    )
    save_encoder(Encoder(config, dims, name=path.name), path)


def with_tiny_models(prompt: Prompt) -> Prompt:
    """An API prompt of an example whose checkpoints are tiny and whose picture is small."""
    return _small({node: LOADERS.get(entry["class_type"], entry) for node, entry in prompt.items()})


def with_tiny_transformer(prompt: Prompt, family: str) -> Prompt:
    """The same for an example of a family of transformers."""
    found = dict(prompt)
    for node, entry in prompt.items():
        loader = TRANSFORMER_LOADERS.get(entry["class_type"])
        if loader is not None:
            found[node] = {"class_type": loader, "inputs": {"family": family}}
    return _small(found)


def _small(prompt: Prompt) -> Prompt:
    size = {"width": 128, "height": 96}
    small = {
        "KSampler": {"steps": 2},
        "EmptyLatentImage": size,
        "EmptySD3LatentImage": size,
        "EmptyHunyuanLatentVideo": {**size, "length": 5},
    }
    return {
        node: {**entry, "inputs": {**entry["inputs"], **small.get(entry["class_type"], {})}}
        for node, entry in prompt.items()
    }


def two_subjects() -> Prompt:
    """One checkpoint, two photographs, two words, one step."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    graph = {
        "checkpoint": node("TinyModels_LoadCheckpoint", family="sdxl"),
        "vision": node("TinyModels_LoadClipVision"),
        "encoder": node("NestedAttention_LoadEncoder", encoder_name=ENCODER_NAME),
        "apply": node("NestedAttention_Apply", model=["checkpoint", 0], clip=["checkpoint", 1]),
        "positive": node("CLIPTextEncode", text="a photo of <anna>", clip=["apply", 1]),
        "negative": node("CLIPTextEncode", text="blurry", clip=["apply", 1]),
        "latent": node("EmptyLatentImage", width=256, height=192, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["apply", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=1,
            steps=1,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="two_subjects"),
    }
    for index, (name, token, noun) in enumerate(_SUBJECTS):
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


def one_photograph() -> Prompt:
    """The same checkpoint and prompt; Anna's photograph is loaded, encoded and bound by one node."""
    theirs = ("anna subject", "anna binding", "rex photo", "rex subject", "rex binding")
    left_out = {"vision", "encoder", *theirs}
    prompt = {name: entry for name, entry in two_subjects().items() if name not in left_out}
    prompt["subject"] = {
        "class_type": "NestedAttention_Subject",
        "inputs": {
            "image": ["anna photo", 0],
            "token": "<anna>",
            "noun": "woman",
            "fidelity": 0.5,
            "encoder_name": ENCODER_NAME,
            "clip_vision_name": VISION_NAME,
        },
    }
    inputs = prompt["apply"]["inputs"]
    del inputs["bindings.binding_1"]
    inputs["bindings.binding_0"] = ["subject", 0]
    return prompt
