"""The world's base models while training: how they start, predict, and are told of subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import comfy.model_management
import comfy.ops
import torch
from tiny_world.bases import BASES, places_like
from torch import Tensor, nn
from torch.nn import functional

from nested_core.attention import merge_heads, split_heads
from nested_core.families import AnyFamily
from nested_core.families.block_sites import BlockSite
from nested_core.families.transformers import FLUX, WAN
from nested_core.families.unet import UNET
from nested_core.families.unet_sites import AttentionSite
from nested_core.sites import Site
from nested_core.training.nested_attention import Subjects, attend, attend_joint

OVERRIDE = "optimized_attention_override"  # ComfyUI's name


@runtime_checkable
class LayerSubjects(Protocol):
    """Subjects that compute a layer of joint attention in a way of their own."""

    def attend(
        self, site: Site, query: Tensor, key: Tensor, value: Tensor, num_text: int, first: int, /
    ) -> Tensor:
        """The layer's output for all tokens, `[batch, heads, tokens, head_dim]`.

        Args:
            num_text: how many of the keys are the text's, which come first.
            first: of the queries, the picture's first.
        """
        ...


class Network(Protocol):
    """One of the base models.

    Attributes:
        sites: the module of each site.
    """

    module: nn.Module
    family: AnyFamily
    sites: Mapping[Site, Any]

    def initialise(self) -> None:
        """Weights that have seen nothing; each block starts as the identity."""
        ...

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        """How the site makes keys and values of its text."""
        ...

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, subjects: Any) -> Tensor:
        """The prediction; `times` go up to 1000."""
        ...


class UNetNetwork:
    """ComfyUI's UNet."""

    family: AnyFamily = UNET

    def __init__(self) -> None:
        self.module = BASES["unet"].new_network()
        modules = dict(self.module.named_modules())
        self._layers = {site: modules[name] for site, name in UNET.sites_of(modules).items()}
        self.sites: Mapping[Site, Any] = {**self._layers}

    def initialise(self) -> None:
        for name, module in self.module.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                if name.endswith(("out.2", "out_layers.3", "proj_out")):
                    nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        attention = self.sites[site]
        return attention.to_k.weight, attention.to_v.weight

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, subjects: Any) -> Tensor:
        options: dict[str, Any] = {OVERRIDE: _attend}
        if subjects is not None:
            patches = {tuple(site): _site_with(subjects, site) for site in self._layers}
            options["patches_replace"] = {"attn2": patches}
        return self.module(noisy, times, context=context, transformer_options=options)


def _attend(
    _: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, *__: Any, **___: Any
) -> Tensor:
    # ComfyUI's attention for small machines computes no gradients of this size fast.
    return attend(query, key, value, heads)


def _site_with(subjects: Subjects, site: AttentionSite) -> Any:
    """ComfyUI's replace-patch of one site."""

    def patch(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        return attend(query, key, value, options["n_heads"], site=site, subjects=subjects)

    return patch


class _Operations(comfy.ops.manual_cast):
    """ComfyUI's, for blocks that add to their input in place: what a norm has read is kept."""

    class LayerNorm(comfy.ops.manual_cast.LayerNorm):
        def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
            return super().forward(x.clone(), *arguments, **options)


@contextmanager
def _differentiable() -> Iterator[None]:
    """ComfyUI's models without kernels that have no gradients."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


class TransformerNetwork:
    """What the transformers have in common."""

    def __init__(self, name: str, family: AnyFamily) -> None:
        self.family: AnyFamily = family
        self.module = BASES[name].new_network(_Operations)
        modules = dict(self.module.named_modules())
        self.sites: Mapping[Site, Any] = {
            site: modules[name] for site, name in family.sites_of(modules).items()
        }

    def initialise(self) -> None:
        for name, module in self.module.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if self.starts_at_zero(name):
                    nn.init.zeros_(module.weight)
                nn.init.zeros_(cast("Tensor", module.bias))
            elif "Norm" in type(module).__name__:
                for own_name, parameter in module.named_parameters(recurse=False):
                    nn.init.constant_(parameter, float(own_name == "weight"))

    def starts_at_zero(self, name: str) -> bool:
        """Whether this layer opens gates, or is the last one."""
        raise NotImplementedError

    def key_norm(self, site: Site, key: Tensor) -> Tensor:
        """Keys `[batch, tokens, inner]` behind the norm of the text's keys at a site."""
        raise NotImplementedError


def override(
    name: str,
    subjects: Any,
    num_text: int,
    key_norm: Callable[[Site, Tensor], Tensor] | None = None,
) -> Any:
    """Stands where ComfyUI looks for another attention function, for one of the transformers.

    Args:
        subjects: `JointSubjects`, `LayerSubjects` or None, a subject for every row.
    """
    site_of, is_joint = _SITES[name]

    def attention(
        _: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: int,
        *__: Any,
        skip_reshape: bool = False,
        transformer_options: Mapping[str, Any] | None = None,
        **___: Any,
    ) -> Tensor:
        if not skip_reshape:
            query, key, value = (split_heads(each, heads) for each in (query, key, value))
        first = num_text if is_joint else 0
        # The grid has 64 cells and the text 77 tokens: their numbers tell the kinds of layers apart.
        is_site = subjects is not None and (is_joint or key.shape[2] == num_text)
        if not is_site:
            return merge_heads(functional.scaled_dot_product_attention(query, key, value))
        site = site_of(transformer_options or {})
        if isinstance(subjects, LayerSubjects):
            return merge_heads(subjects.attend(site, query, key, value, num_text, first))
        norm = None if key_norm is None else partial(key_norm, site)
        pixels = slice(first, None)
        return merge_heads(
            attend_joint(query, key, value, num_text, pixels, None, site, subjects, norm)
        )

    return attention


def _flux_site(options: Mapping[str, Any]) -> Site:
    double, single = FLUX.kinds.kinds
    kind = single if options["block_type"] == "single" else double
    return BlockSite(kind, options["block_index"])


def _wan_site(options: Mapping[str, Any]) -> Site:
    (kind,) = WAN.kinds.kinds
    return BlockSite(kind, options["block_index"])


_SITES: Mapping[str, tuple[Callable[[Mapping[str, Any]], Site], bool]] = {
    "joint": (_flux_site, True),
    "cross": (_wan_site, False),
}


class JointNetwork(TransformerNetwork):
    """ComfyUI's Flux."""

    def __init__(self) -> None:
        super().__init__("joint", FLUX)

    def starts_at_zero(self, name: str) -> bool:
        return name.endswith(("_mod.lin", "modulation.lin", "modulation.1", "final_layer.linear"))

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        block = self.sites[site]
        weight = block.txt_attn.qkv.weight if hasattr(block, "txt_attn") else block.linear1.weight
        width = block.hidden_size
        return weight[width : 2 * width], weight[2 * width : 3 * width]

    def key_norm(self, site: Site, key: Tensor) -> Tensor:
        block = self.sites[site]
        norm = (block.txt_attn if hasattr(block, "txt_attn") else block).norm.key_norm
        return norm(key.unflatten(-1, (block.hidden_size // norm.weight.numel(), -1))).flatten(-2)

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, subjects: Any) -> Tensor:
        options = {OVERRIDE: override("joint", subjects, context.shape[1], self.key_norm)}
        with _differentiable():
            return self.module(noisy, times / 1000.0, context, transformer_options=options)


class CrossNetwork(TransformerNetwork):
    """ComfyUI's Wan. A picture is a video of one frame."""

    def __init__(self) -> None:
        super().__init__("cross", WAN)

    def initialise(self) -> None:
        super().initialise()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if name.endswith("modulation"):
                    parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)

    def starts_at_zero(self, name: str) -> bool:
        return name.endswith("head.head")

    def projection_weights(self, site: Site) -> tuple[Tensor, Tensor]:
        attention = self.sites[site]
        return attention.k.weight, attention.v.weight

    def key_norm(self, site: Site, key: Tensor) -> Tensor:
        return self.sites[site].norm_k(key)

    def predict(self, noisy: Tensor, times: Tensor, context: Tensor, subjects: Any) -> Tensor:
        placed = torch.cat([noisy, places_like(noisy)], dim=1)[:, :, None]
        options = {OVERRIDE: override("cross", subjects, context.shape[1], self.key_norm)}
        with _differentiable():
            return self.module(placed, times, context, transformer_options=options)[:, :, 0]


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "unet": UNetNetwork,
    "joint": JointNetwork,
    "cross": CrossNetwork,
}
