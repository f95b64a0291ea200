"""Foreign encoder files in several namings. All are made up: nobody has seen the authors' keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from nested_core.encoder import Encoder
from nested_core.families.unet_sites import AttentionSite

Tensors = dict[str, Tensor]


def diffusers_place(site: AttentionSite) -> str:
    """ComfyUI counts three blocks a level; its input blocks begin with the first convolution."""
    tail = f"transformer_blocks.{site.index}"
    if site.block == "middle":
        return f"mid_block.attentions.0.{tail}"
    side, number = ("down", site.number - 1) if site.block == "input" else ("up", site.number)
    return f"{side}_blocks.{number // 3}.attentions.{number % 3}.{tail}"


def comfyui_place(site: AttentionSite) -> str:
    block = "middle_block" if site.block == "middle" else f"{site.block}_blocks.{site.number}"
    return f"{block}.1.transformer_blocks.{site.index}"


def counted(encoder: Encoder, first: int, step: int, order: str) -> dict[AttentionSite, int]:
    """The sites' numbers when blocks are counted in this order."""
    sites = sorted(encoder.site_dims, key=lambda site: order.split().index(site.block))
    return {site: first + step * place for place, site in enumerate(sites)}


def named(encoder: Encoder, resampler: str, key: Callable[[AttentionSite, str], str]) -> Tensors:
    """The encoder's tensors, renamed: a prefix for the resampler, `key(site, "k")` for a site."""
    renamed: Tensors = {}
    for name, tensor in encoder.state_dict().items():
        if name.startswith("resampler."):
            renamed[resampler + name.removeprefix("resampler.")] = tensor
        else:
            path, _, projection = name.removeprefix("sites.").partition(".to_")
            renamed[key(AttentionSite.from_path(path), projection[0])] = tensor
    return renamed


def processors(encoder: Encoder) -> Tensors:
    return named(
        encoder,
        "image_proj_model.",
        lambda site, p: f"unet.{diffusers_place(site)}.attn2.processor.to_{p}_ip.weight",
    )


def ip_adapter(encoder: Encoder) -> Tensors:
    numbers = counted(encoder, 1, 2, "input output middle")
    return named(
        encoder, "image_proj.", lambda site, p: f"ip_adapter.{numbers[site]}.to_{p}_ip.weight"
    )


def nested_dicts(encoder: Encoder) -> Tensors:
    """{"module": {"personalizer": {"perceiver": ..., "key": {"down_blocks": ...}}}}, flattened."""
    words = {"k": "key", "v": "value"}
    return named(
        encoder,
        "module.personalizer.perceiver.",
        lambda site, p: f"module.personalizer.{words[p]}.{diffusers_place(site)}.weight",
    )


def underscored(encoder: Encoder) -> Tensors:
    """Module dictionaries take no dots in a name."""
    return named(
        encoder,
        "",
        lambda site, p: (
            f"layers_by_site.{diffusers_place(site).replace('.', '_')}_attn2.{p}_proj.0.weight"
        ),
    )


def comfyui_names(encoder: Encoder) -> Tensors:
    return named(
        encoder,
        "resampler.",
        lambda site, p: f"model.diffusion_model.{comfyui_place(site)}.attn2.to_{p}_nested.weight",
    )


def our_names(encoder: Encoder) -> Tensors:
    return dict(encoder.state_dict())


def list_down_up_middle(encoder: Encoder) -> Tensors:
    numbers = counted(encoder, 0, 1, "input output middle")
    return named(encoder, "q_former.", lambda site, p: f"nested.{numbers[site]}.w{p}")


def list_down_middle_up(encoder: Encoder) -> Tensors:
    numbers = counted(encoder, 0, 1, "input middle output")
    return named(encoder, "q_former.", lambda site, p: f"w{p}.{numbers[site]}.weight")


NAMINGS = [
    processors,
    ip_adapter,
    nested_dicts,
    underscored,
    comfyui_names,
    our_names,
    list_down_up_middle,
    list_down_middle_up,
]


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path
