"""Sample grids: what the encoder can do so far, beside its references and the base model alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..config import EncoderConfig
from ..preprocess import CLIP_MEAN, CLIP_STD
from ..shapes import Float, UInt8
from .base_model import SUBJECT, BaseModel, Caption, PictureSize, randomise_rows
from .config import TrainingConfig
from .data.batches import Batch, Data, Stripe, close_batches
from .files import replace_file
from .loss import Project
from .nested_attention import NestedSubjects

NUM_SAMPLES = 4  # rows of a grid


@torch.no_grad()
def draw_samples(
    base_model: BaseModel,
    captions: Sequence[Caption],
    subjects: NestedSubjects | None,
    config: TrainingConfig,
    device: torch.device,
) -> Float[Tensor, "batch 3 height width"]:
    """One picture in [-1, 1] per caption, deterministic (DDIM, arXiv:2010.02502), from fixed noise."""
    side, count = config.resolution, len(captions)
    sizes = [PictureSize(side, side, 0, 0, side, side)] * count
    text = base_model.encode_captions(captions, sizes)
    empty_text = base_model.encode_captions([Caption("", "")] * count, sizes)
    generators = [torch.Generator().manual_seed(config.seed + row) for row in range(count)]
    shape = base_model.encode_pixels(torch.zeros(1, 3, side, side), generators[:1]).shape[1:]
    latents = randomise_rows(generators, torch.randn, *shape).to(device)
    schedule = base_model.schedule.of_size(*shape[-2:])
    times = schedule.times(torch.linspace(0.999, 0.0, config.sample_steps + 1, device=device))
    for time, next_time in pairwise(times[:, None].expand(-1, count)):
        timesteps = schedule.timesteps(time)
        unconditional = base_model.predict(latents, timesteps, empty_text, None).float()
        conditional = base_model.predict(latents, timesteps, text, subjects).float()
        prediction = unconditional + config.guidance * (conditional - unconditional)
        clean, noise = schedule.parts(latents, prediction, time)
        latents = schedule.mix(clean, noise, next_time)
    return base_model.decode_latents(latents)


@torch.no_grad()
def sample_grid(
    base_model: BaseModel,
    project: Project,
    batch: Batch,
    prompts: Sequence[str],
    encoder_config: EncoderConfig,
    config: TrainingConfig,
    device: torch.device,
) -> UInt8[Tensor, "height width 3"]:
    """A row per reference: itself, then by prompt the base model alone and with the subject.

    `project` is called once, in whatever wrapper it has; every process must come along.
    """
    pixels = batch.reference_pixels.to(device)
    hidden_state = encoder_config.image_encoder.hidden_state
    features = base_model.patch_features(pixels, hidden_state).float()
    keys_values = project(features, torch.zeros(len(pixels), dtype=torch.bool, device=device))
    columns = [_reference_pictures(batch.reference_pixels, config.resolution)]
    for prompt in prompts:
        captions = [Caption(prompt, caption.noun) for caption in batch.captions]
        positions = base_model.encode_captions(captions, list(batch.sizes)).positions
        is_bound = bool((positions.view(len(captions), -1) >= 0).any(dim=1).all())
        bound = NestedSubjects(
            keys_values, positions, encoder_config.value_norm, encoder_config.nested_key
        )
        for subjects in (None, bound if is_bound else None):
            columns.append(draw_samples(base_model, captions, subjects, config, device).cpu())
    grid = torch.cat([column.movedim(1, -1).flatten(0, 1) for column in columns], dim=1)
    return ((grid + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def sample_prompts(data: Data, config: TrainingConfig) -> Sequence[str]:
    """The settings', or where there are none, captions of the data."""
    texts = [caption.text for caption in data.some_captions(2)]
    return config.sample_prompts or [text for text in texts if SUBJECT in text]


def sample_captions(data: Data, config: TrainingConfig) -> list[Caption]:
    """Whatever the sample grids have encoded."""
    nouns = [caption.noun for caption in sample_batch(data, NUM_SAMPLES).captions]
    prompts = sample_prompts(data, config)
    return [Caption("", ""), *(Caption(text, noun) for text in prompts for noun in nouns)]


def sample_batch(data: Data, most: int) -> Batch:
    """References, captions and sizes of the data's first samples."""
    batches = data.batches(None, Stripe())
    batch = next(batches)
    close_batches(batches)
    batch.reference_pixels = batch.reference_pixels[:most]
    batch.captions, batch.sizes = batch.captions[:most], batch.sizes[:most]
    return batch


def _reference_pictures(reference_pixels: Tensor, side: int) -> Tensor:
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
