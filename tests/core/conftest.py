"""Small encoders for tests: real structure, tiny widths, seeded weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nested_core.attention import ValueNorm
from nested_core.checkpoint import load_encoder
from nested_core.config import EncoderConfig, ImageEncoderConfig, ResamplerConfig
from nested_core.encoder import Encoder
from nested_core.errors import CheckpointError
from nested_core.families.unet_sites import AttentionSite
from nested_core.resampler import ResamplerExtras
from nested_core.subject import Subject

sys.path.append(str(Path(__file__).parent))

MakeEncoder = Callable[..., Encoder]
MakeSubject = Callable[..., Subject]


@pytest.fixture(scope="session")
def encoder_config() -> EncoderConfig:
    """A tiny encoder, none of whose sizes are equal by accident where they need not be."""
    return EncoderConfig(
        noun="person",
        base="sdxl",
        image_encoder=ImageEncoderConfig("clip_vision", 16, 224, "penultimate"),
        resampler=ResamplerConfig(
            embedding_dim=16, dim=16, depth=2, dim_head=8, heads=2, num_queries=4, output_dim=24
        ),
        value_norm=ValueNorm("per_head", 2.0),
    )


def _dims(*rows: tuple[str, list[int], int, int]) -> dict[AttentionSite, int]:
    """Rows of: block, its numbers, transformer blocks in each, inner width."""
    return {
        AttentionSite(block, number, index): width
        for block, numbers, depth, width in rows
        for number in numbers
        for index in range(depth)
    }


@pytest.fixture(scope="session")
def few_site_dims() -> dict[AttentionSite, int]:
    """One site of each kind, for tests that are not about the layout."""
    return _dims(("input", [4], 1, 16), ("middle", [0], 2, 32), ("output", [3], 1, 16))


@pytest.fixture(scope="session")
def sdxl_site_dims() -> dict[AttentionSite, int]:
    """All 70 sites of SDXL, at an 80th of their width."""
    return _dims(
        ("input", [4, 5], 2, 8),
        ("input", [7, 8], 10, 16),
        ("middle", [0], 10, 16),
        ("output", [0, 1, 2], 10, 16),
        ("output", [3, 4, 5], 2, 8),
    )


@pytest.fixture(scope="session")
def sd15_site_dims() -> dict[AttentionSite, int]:
    """All 16 sites of SD1.5, at an 80th of their width."""
    return _dims(
        ("input", [1, 2], 1, 4),
        ("input", [4, 5], 1, 8),
        ("input", [7, 8], 1, 16),
        ("middle", [0], 1, 16),
        ("output", [3, 4, 5], 1, 16),
        ("output", [6, 7, 8], 1, 8),
        ("output", [9, 10, 11], 1, 4),
    )


@pytest.fixture(scope="session")
def make_encoder(
    encoder_config: EncoderConfig, few_site_dims: Mapping[AttentionSite, int]
) -> MakeEncoder:
    """`make_encoder(config, site_dims, dtype, seed, extras)`: every weight random, the norms' too."""

    def make(
        config: EncoderConfig = encoder_config,
        site_dims: Mapping[AttentionSite, int] = few_site_dims,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        extras: ResamplerExtras | None = None,
    ) -> Encoder:
        generator = torch.Generator().manual_seed(seed)
        encoder = Encoder(config, site_dims, name="tiny", extras=extras)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(center + 0.2 * noise)
        return encoder.to(dtype)

    return make


@pytest.fixture(scope="session")
def make_subject(make_encoder: MakeEncoder) -> MakeSubject:
    """`make_subject(encoder, references, seed)`: random tokens, one reference unless told."""

    def make(
        encoder: Encoder | None = None, references: tuple[int, ...] = (4,), seed: int = 0
    ) -> Subject:
        encoder = encoder or make_encoder()
        generator = torch.Generator().manual_seed(seed)
        width = encoder.config.resampler.output_dim
        tokens = torch.randn((sum(references), width), generator=generator)
        return Subject(tokens, encoder, references, noun="person", thumbnail="")

    return make


@pytest.fixture(scope="session")
def encoders(
    make_encoder: MakeEncoder,
    encoder_config: EncoderConfig,
    sdxl_site_dims: Mapping[AttentionSite, int],
    sd15_site_dims: Mapping[AttentionSite, int],
) -> Mapping[str, Encoder]:
    """Complete encoders with heads of IP-Adapter's width, which no shape tells."""
    config = replace(
        encoder_config, resampler=replace(encoder_config.resampler, dim_head=64, heads=1)
    )
    return {
        "sdxl": make_encoder(config, sdxl_site_dims),
        "sd15": make_encoder(replace(config, base="sd15"), sd15_site_dims),
    }


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[dict[str, Tensor]], str]:
    """The message with which a file of these tensors is refused."""

    def message(tensors: dict[str, Tensor]) -> str:
        path = tmp_path / "foreign.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        with pytest.raises(CheckpointError) as caught:
            load_encoder(path)
        return str(caught.value)

    return message
