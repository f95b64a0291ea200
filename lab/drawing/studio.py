"""ComfyUI in this process: the tiny world's models, its own nodes, and this pack's as it loads them."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sample
import folder_paths
import numpy as np
import torch
from numpy.typing import NDArray
from tiny_world import models, world

from ..subjects.held_out import Prompt

# By its name: a checker takes this checkout's own `nodes` for ComfyUI's.
host_nodes = importlib.import_module("nodes")
_ENCODERS = SLOTS = "nested_attention"  # the pack's kind of model, and the key of its slot maps
_CELLS = world.SIZE // models.BLOCK

Conditioning = list[list[Any]]


@dataclass(frozen=True)
class Sampling:
    """How KSampler is set."""

    steps: int = 20
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"


class Studio:
    """MODEL, CLIP, VAE and CLIP_VISION of the tiny world, and what is done with them."""

    def __init__(
        self,
        weights: Path = models.WEIGHTS,
        sampling: Sampling | None = None,
        name: str = models.UNET,
    ) -> None:
        _load_pack()
        self.name = name
        self.sampling = sampling or Sampling()
        self.model, self.clip = models.load_model(weights, name), models.load_clip(weights, name)
        self.vae, self.vision = models.load_vae(), models.load_clip_vision(weights)

    def load_encoder(self, file: Path) -> Any:
        """The encoder, by its node."""
        folder_paths.add_model_folder_path(_ENCODERS, str(file.parent), is_default=True)
        return run_node("NestedAttention_LoadEncoder", encoder_name=file.name)[0]

    def encode_subject(self, encoder: Any, photograph: world.Picture) -> Any:
        """A subject of one photograph, by its node."""
        image = torch.from_numpy(photograph)[None]
        return run_node(
            "NestedAttention_EncodeSubject", encoder=encoder, image=image, clip_vision=self.vision
        )[0]

    def draw(
        self, model: Any, clip: Any, captions: Sequence[str], prompts: Sequence[Prompt]
    ) -> NDArray[np.float32]:
        """Pictures `[prompts, 32, 32, 3]`, all in one run of the sampler, each from its own noise."""
        how = self.sampling
        shape = (models.LATENT_CHANNELS, _CELLS, _CELLS)
        noise = torch.from_numpy(np.stack([prompt.noise(*shape) for prompt in prompts]))
        if model.get_model_object("latent_format").latent_dimensions == 3:
            noise = noise[:, :, None]  # one frame
        # What the KSampler node calls; the node itself draws one noise for a whole batch.
        latents = comfy.sample.sample(
            model,
            noise,
            how.steps,
            how.cfg,
            how.sampler,
            how.scheduler,
            join([_encode(clip, caption) for caption in captions]),
            _encode(clip, ""),
            torch.zeros_like(noise),
            disable_pbar=True,
        )
        (pictures,) = run_node("VAEDecode", vae=self.vae, samples={"samples": latents})
        return pictures.float().cpu().numpy()


def _encode(clip: Any, text: str) -> Conditioning:
    return run_node("CLIPTextEncode", clip=clip, text=text)[0]


def join(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Prompts of the same length as one conditioning with a row for each.

    ComfyUI keeps the rows of a conditioning that has as many as the batch, and repeats single ones.
    """
    contexts, extras = zip(*(entry for (entry,) in conditionings), strict=True)
    joined = {**extras[0], "pooled_output": torch.cat([extra["pooled_output"] for extra in extras])}
    if any("model_conds" in extra for extra in extras):
        maps = [extra["model_conds"][SLOTS] for extra in extras]
        slots = type(maps[0])(torch.cat([slot_map.cond for slot_map in maps]))
        joined["model_conds"] = {**extras[0]["model_conds"], SLOTS: slots}
    return [[torch.cat(contexts), joined]]


def run_node(name: str, **inputs: Any) -> tuple[Any, ...]:
    """All outputs of a node of ComfyUI or of the pack, old or new schema."""
    cls: Any = host_nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(cls, "define_schema"):
        return cls.execute(**inputs).result
    return getattr(cls(), cls.FUNCTION)(**inputs)


def _load_pack() -> None:
    if "NestedAttention_Apply" not in host_nodes.NODE_CLASS_MAPPINGS:
        loaded = asyncio.run(host_nodes.load_custom_node(os.environ["NESTED_ATTENTION_ROOT"]))
        assert loaded, "ComfyUI could not load the pack; its log says why"
