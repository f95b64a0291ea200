"""Nested attention inside a UNet of diffusers: which of its layers are sites, and what they compute.

Nothing here imports diffusers; its `Attention` modules are used by their attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from ..attention import merge_heads, split_heads
from ..checkpoint.layouts import DiffusersPlace, layers_per_block, named_place
from ..errors import HostError
from ..sites import AttentionSite
from .subjects import NestedSubjects

SUBJECTS_KEY = "nested_subjects"


def cross_attentions(unet: nn.Module) -> dict[AttentionSite, Any]:
    """The UNet's cross-attention layers under ComfyUI's numbers.

    Raises:
        HostError: no cross-attention, blocks that ComfyUI's numbering does not know, or layers that
            do more than attend.
    """
    places: dict[DiffusersPlace, nn.Module] = {}
    named = cast("Iterable[tuple[str, nn.Module]]", unet.named_modules())
    for name, module in named:
        place = named_place(name) if name.endswith(".attn2") else None
        if isinstance(place, DiffusersPlace):
            places[place] = module
    layers = layers_per_block(places) if places else None
    if layers is None:
        found = type(unet).__name__
        raise HostError(
            f"Training: {found} has {len(places)} cross-attention layers at places that are none of "
            "Stable Diffusion's or SDXL's UNet. Use a base model of these families."
        )
    for place, attention in places.items():
        _check_plain(place, attention)
    return {place.site(layers): attention for place, attention in places.items()}


def _check_plain(place: DiffusersPlace, attention: Any) -> None:
    unknown = [
        name
        for name in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj")
        if getattr(attention, name, None)
    ]
    if attention.residual_connection or attention.rescale_output_factor != 1.0:
        unknown.append("residual connection or rescaling")
    if unknown:
        raise HostError(
            f"Training: the cross-attention at {place} has {', '.join(unknown)}, which the nodes do "
            "not know. Use a base model of the SD1.5 or SDXL family."
        )


class CrossAttentionProcessor:
    """Cross-attention of one site; the subjects come with the call, so recomputing it is the same."""

    def __init__(self, site: AttentionSite) -> None:
        self.site = site

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        nested_subjects: NestedSubjects | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads: int = attention.heads
        query = split_heads(attention.to_q(hidden_states), heads)
        key, value = (
            split_heads(project(context), heads) for project in (attention.to_k, attention.to_v)
        )
        out = functional.scaled_dot_product_attention(query, key, value, attention_mask)
        if nested_subjects is not None:
            out = out + nested_subjects.delta(self.site, query, key, value).to(out.dtype)
        projected: Tensor = attention.to_out[0](merge_heads(out))
        return attention.to_out[1](projected)


class SelfAttentionProcessor:
    """A self-attention layer's own processor, deaf to the subjects that diffusers passes to all."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self, *arguments: Any, nested_subjects: NestedSubjects | None = None, **options: Any
    ) -> Tensor:
        return self.inner(*arguments, **options)


def install_processors(unet: Any, sites: Mapping[AttentionSite, Any]) -> None:
    """Makes the UNet take `cross_attention_kwargs={"nested_subjects": ...}`; else it is unchanged."""
    by_module = {attention: site for site, attention in sites.items()}
    for module in unet.modules():
        processor = getattr(module, "processor", None)
        if module in by_module:
            module.set_processor(CrossAttentionProcessor(by_module[module]))
        elif processor is not None and hasattr(module, "set_processor"):
            module.set_processor(SelfAttentionProcessor(processor))
