"""Whole training states in several namings: tiny tensors under the names of the libraries' models.

`tests/training` compares the rules with the libraries' own models; these stand in for them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from foreign_files import Tensors, comfyui_place, counted, diffusers_place, named
from torch import Tensor

from nested_core.encoder import Encoder

_TEXT_DIM = 24
Place = Callable[..., str]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape) if shape else torch.tensor(3.0)


def layer(name: str, *shape: int) -> Tensors:
    return {f"{name}.weight": noise(*shape), f"{name}.bias": noise(shape[0])}


def transformer(name: str, width: int) -> Tensors:
    """One transformer block of a UNet, in the names that diffusers and ComfyUI share."""
    tensors: Tensors = {}
    for attention, context in (("attn1", width), ("attn2", _TEXT_DIM)):
        tensors[f"{name}.{attention}.to_q.weight"] = noise(width, width)
        tensors[f"{name}.{attention}.to_k.weight"] = noise(width, context)
        tensors[f"{name}.{attention}.to_v.weight"] = noise(width, context)
        tensors |= layer(f"{name}.{attention}.to_out.0", width, width)
    for norm in ("norm1", "norm2", "norm3"):
        tensors |= layer(f"{name}.{norm}", width)
    return tensors | layer(f"{name}.ff.net.0.proj", 2, width) | layer(f"{name}.ff.net.2", width, 2)


def _unet(encoder: Encoder, place: Place, tops: Tensors) -> Tensors:
    tensors = dict(tops)
    for site, width in encoder.site_dims.items():
        block = place(site)
        tensors |= transformer(block, width)
        outside = block.partition(".transformer_blocks.")[0]
        # Named as the resampler's own, and with as many dimensions.
        tensors |= layer(f"{outside}.proj_in", width, width)
        tensors |= layer(f"{outside}.proj_out", width, width)
        tensors |= layer(f"{outside}.norm", width)
    return tensors


def diffusers_unet(encoder: Encoder) -> Tensors:
    tops = layer("conv_in", 4, 4, 3, 3) | layer("conv_norm_out", 4) | layer("conv_out", 4, 4, 3, 3)
    tops |= layer("time_embedding.linear_1", 4, 4) | layer("add_embedding.linear_2", 4, 4)
    for name, shape in (("conv1", (4, 4, 3, 3)), ("norm1", (4,)), ("time_emb_proj", (4, 4))):
        tops |= layer(f"down_blocks.0.resnets.1.{name}", *shape)
    tops |= layer("down_blocks.0.downsamplers.0.conv", 4, 4, 3, 3)
    return _unet(encoder, diffusers_place, tops)


def comfyui_unet(encoder: Encoder) -> Tensors:
    tops = layer("time_embed.0", 4, 4) | layer("label_emb.0.2", 4, 4) | layer("out.2", 4, 4, 3, 3)
    tops |= layer("input_blocks.0.0", 4, 4, 3, 3) | layer("input_blocks.3.0.op", 4, 4, 3, 3)
    tops |= layer("middle_block.0.in_layers.0", 4) | layer("output_blocks.2.2.conv", 4, 4, 3, 3)
    return _unet(encoder, comfyui_place, tops)


def clip_layers(name: str) -> Tensors:
    tensors = layer(f"{name}.mlp.fc1", 4, 4) | layer(f"{name}.layer_norm1", 4)
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors |= layer(f"{name}.self_attn.{projection}", 4, 4)
    return tensors


def image_encoder(root: str = "image_encoder.") -> Tensors:
    name = f"{root}vision_model"
    return {
        **clip_layers(f"{name}.encoder.layers.0"),
        **layer(f"{name}.pre_layrnorm", 4),
        f"{name}.embeddings.class_embedding": noise(4),
        f"{name}.embeddings.patch_embedding.weight": noise(4, 3, 2, 2),
        f"{name}.embeddings.position_ids": torch.arange(5)[None],
        f"{root}visual_projection.weight": noise(4, 4),
    }


def text_encoder(root: str = "text_encoder.") -> Tensors:
    name = f"{root}text_model"
    return {
        **clip_layers(f"{name}.encoder.layers.0"),
        **layer(f"{name}.final_layer_norm", 4),
        f"{name}.embeddings.token_embedding.weight": noise(9, 4),
        f"{root}text_projection.weight": noise(4, 4),
    }


def autoencoder(root: str = "vae.") -> Tensors:
    return {
        **layer(f"{root}encoder.down_blocks.0.resnets.0.conv1", 4, 4, 3, 3),
        **layer(f"{root}decoder.mid_block.attentions.0.to_k", 4, 4),
        **layer(f"{root}decoder.conv_in", 4, 4, 3, 3),
        **layer(f"{root}quant_conv", 4, 4, 1, 1),
    }


def optimiser(trained: Iterable[str]) -> Tensors:
    tensors: Tensors = {
        "global_step": noise(),
        "optimizer.param_groups.0.lr": noise(),
        "lr": noise(2),
        "lr_scheduler.last_epoch": noise(),
        "random_states_0": torch.zeros(3, dtype=torch.uint8),
    }
    for number, name in enumerate(trained):
        tensors[f"optimizer.state.{number}.exp_avg"] = noise(2, 2)
        tensors[f"{name}.exp_avg_sq"] = noise(2, 2)
        tensors[f"state.{number}.step"] = noise()
    return tensors


OTHERS: dict[str, Callable[[], Tensors]] = {
    "image encoder": image_encoder,
    "text encoder": text_encoder,
    "token embedding": lambda: {"token_embedding.weight": noise(9, 4)},
    "resized embeddings": lambda: {
        "text_encoder_2.resized_token_embeddings": noise(10, 4),
        "learned_embeds.<person>": noise(4),
        "text_encoder_2.embeddings.weight": noise(10, 4),
    },
    "noise schedule": lambda: {"alphas_cumprod": noise(7), "model.posterior_variance": noise(7)},
    "autoencoder": autoencoder,
    "optimiser": lambda: optimiser(
        ["image_proj_model.latents", "adapter_modules.1.to_k_ip.weight"]
    ),
}


def merged_places(encoder: Encoder, resampler: str, *parts: Place | None) -> Tensors:
    """The tensors with each projection under every name that one of `parts` gives it."""
    tensors: Tensors = {}
    for part in parts:
        renamed = named(encoder, resampler, lambda site, p, part=part: part(site, p) or "")
        tensors |= {name: tensor.clone() for name, tensor in renamed.items() if name}
    return tensors


def in_processors(place: Place, root: str = "unet.", word: str = "to_{}_ip") -> Place:
    return lambda site, p: f"{root}{place(site)}.attn2.processor.{word.format(p)}.weight"


def in_list(encoder: Encoder, first: int, step: int, root: str = "adapter_modules.") -> Place:
    numbers = counted(encoder, first, step, "input output middle")
    return lambda site, p: f"{root}{numbers[site]}.to_{p}_ip.weight"


def only(part: Place, allows: Callable[..., bool]) -> Place:
    """The part's names where `allows(site, "k")`, else none."""
    return lambda site, p: part(site, p) if allows(site, p) else ""


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}
