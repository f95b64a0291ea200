"""Sample grids: what the encoder can do so far, beside its reference and the base model alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..config import EncoderConfig
from ..preprocess import CLIP_MEAN, CLIP_STD
from ..shapes import Float, UInt8
from .files import replace_file
from .objective import Project
from .protocol import Batch, Caption, Host, PictureSize
from .subjects import NestedSubjects


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn: deterministic (DDIM, arXiv:2010.02502), from fixed noise."""

    steps: int
    guidance: float
    resolution: int
    seed: int


@torch.no_grad()
def draw(
    host: Host,
    captions: Sequence[Caption],
    subjects: NestedSubjects | None,
    how: Sampling,
    device: torch.device,
) -> Float[Tensor, "batch 3 height width"]:
    """One picture in [-1, 1] per caption."""
    side = how.resolution
    sizes = [PictureSize(side, side, 0, 0, side, side)] * len(captions)
    text = host.encode_captions(captions, sizes)
    nothing = host.encode_captions([Caption("", "")] * len(captions), sizes)
    generators = [torch.Generator().manual_seed(how.seed + i) for i in range(len(captions))]
    shape = host.encode_pixels(torch.zeros(1, 3, side, side), generators[:1]).shape[1:]
    latents = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device)
    times = host.schedule.times(torch.linspace(0.999, 0.0, how.steps + 1, device=device))
    for now, then in pairwise(times):
        time, next_time = now.expand(len(captions)), then.expand(len(captions))
        told = host.schedule.times_told(time)
        without = host.predict(latents, told, nothing, None).float()
        prediction = host.predict(latents, told, text, subjects).float()
        prediction = without + how.guidance * (prediction - without)
        clean, noise = host.schedule.parts(latents, prediction, time)
        latents = host.schedule.mix(clean, noise, next_time)
    return host.decode_latents(latents)


@torch.no_grad()
def sample_grid(
    host: Host,
    encoder: Project,
    batch: Batch,
    prompts: Sequence[str],
    config: EncoderConfig,
    how: Sampling,
    device: torch.device,
) -> UInt8[Tensor, "height width 3"]:
    """A row per reference: itself, then by prompt the base model alone and with the subject.

    `encoder` is called once, in whatever wrapper it has; every process must come along.
    """
    pixels = batch.reference_pixels.to(device)
    features = host.patch_features(pixels, config.image_encoder.hidden_state).float()
    keys_values = encoder(features, torch.zeros(len(pixels), dtype=torch.bool, device=device))
    columns = [_shown(batch.reference_pixels, how.resolution)]
    for prompt in prompts:
        captions = [Caption(prompt, caption.noun) for caption in batch.captions]
        positions = host.encode_captions(captions, list(batch.sizes)).positions
        is_bound = bool((positions >= 0).all())
        bound = NestedSubjects(keys_values, positions, config.value_norm) if is_bound else None
        for subjects in (None, bound):
            columns.append(draw(host, captions, subjects, how, device).cpu())
    grid = torch.cat([column.movedim(1, -1).flatten(0, 1) for column in columns], dim=1)
    return ((grid + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _shown(reference_pixels: Tensor, side: int) -> Tensor:
    """References as pictures in [-1, 1] at the samples' size."""
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    pictures = reference_pixels.cpu() * deviation + mean
    scaled = torch.nn.functional.interpolate(pictures, size=(side, side), mode="bilinear")
    return scaled * 2.0 - 1.0


def save_grid(grid: UInt8[Tensor, "height width 3"], path: Path) -> None:
    """As a PNG."""
    content = io.BytesIO()
    Image.fromarray(grid.numpy()).save(content, format="PNG")
    replace_file(path, content.getvalue())
