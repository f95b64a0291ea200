"""Which family a model is of, and whether encoders and text encoders fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....nested_core.encoder import Encoder
from ....nested_core.errors import HostError
from .host_family import HostFamily
from .transformers import TRANSFORMERS
from .unet import UNET_HOST

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

HOST_FAMILIES: tuple[HostFamily, ...] = (UNET_HOST, *TRANSFORMERS)


def host_family_of(model: ModelPatcher) -> HostFamily:
    """The family of a MODEL.

    Raises:
        HostError: no supported family; the model is named.
    """
    base_model = model.model
    for host in HOST_FAMILIES:
        if host.fits(base_model):
            return host
    config = getattr(base_model, "model_config", None)
    kind = type(config).__name__ if config is not None else type(base_model).__name__
    raise HostError(
        f"Apply Nested Attention: this MODEL is '{kind}'. Nested Attention works with "
        f"{', '.join(host.label for host in HOST_FAMILIES)}. Connect such a checkpoint."
    )


def site_dims(model: ModelPatcher) -> dict[Any, int]:
    """Inner width (heads * head_dim) of each site of a MODEL.

    Raises:
        HostError: see `host_family_of`.
    """
    return host_family_of(model).site_dims(model.model.diffusion_model)


def check_encoder_fits(encoder: Encoder, host: HostFamily, dims: dict[Any, int]) -> None:
    """Raises HostError unless the encoder's sites are exactly the model's, with the same widths."""
    if encoder.family is not host.family:  # whose sites may have the same names
        found = f"is for models of the family '{encoder.family.name}'"
        expected = f"is of '{host.family.name}' ({host.label})"
        raise _does_not_fit(encoder, found, expected)
    if encoder.site_dims == dims:
        return
    if encoder.site_dims.keys() != dims.keys():
        listed = (
            encoder.family.describe_sites(encoder.site_dims),
            host.family.describe_sites(dims),
        )
        found, expected = (
            f"{len(sites)} attention sites ({listing})"
            for sites, listing in zip((encoder.site_dims, dims), listed, strict=True)
        )
    else:
        site = next(site for site in dims if encoder.site_dims[site] != dims[site])
        found, expected = (
            f"width {sites[site]} at site {site.text}" for sites in (encoder.site_dims, dims)
        )
    raise _does_not_fit(encoder, f"has {found}", f"has {expected}")


def _does_not_fit(encoder: Encoder, found: str, expected: str) -> HostError:
    return HostError(
        f"Apply Nested Attention: encoder '{encoder.name}' (made for '{encoder.config.base}') {found}, "
        f"but this MODEL {expected}. Connect the kind of checkpoint that the encoder was trained for, "
        "or load an encoder for this one."
    )


def check_clip(clip: CLIP, host: HostFamily) -> None:
    """Raises HostError unless the text encoder is of a kind that this family reads."""
    keys = frozenset(clip.tokenize("")) if clip is not None else frozenset[str]()
    if keys not in host.tokenizers:
        found = ", ".join(sorted(keys)) or "none"
        expected = " or ".join(
            f"'{', '.join(sorted(names))}' ({whose})" for names, whose in host.tokenizers.items()
        )
        raise HostError(
            f"Apply Nested Attention: this CLIP has the tokenizers '{found}', expected {expected}. "
            "Connect the CLIP that belongs to the MODEL."
        )
