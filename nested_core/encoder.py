"""The encoder: a resampler, and for every attention site the projections to nested keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from .config import EncoderConfig
from .errors import CheckpointError
from .families import AnyFamily, family_named
from .resampler import Linear, Resampler, ResamplerExtras
from .shapes import Float
from .sites import Site, SiteT

_MAX_SITES = 1024  # SDXL has 70


class SiteProjections(nn.Module):
    """Subject tokens to the nested keys and values of one site."""

    def __init__(self, token_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_k = Linear(token_dim, inner_dim, bias=False)
        self.to_v = Linear(token_dim, inner_dim, bias=False)

    def forward(
        self, subject_tokens: Float[Tensor, "*batch tokens token_dim"]
    ) -> tuple[Float[Tensor, "*batch tokens inner"], Float[Tensor, "*batch tokens inner"]]:
        return self.to_k(subject_tokens), self.to_v(subject_tokens)


class _Level(nn.ModuleDict):
    """One part of the sites' paths.

    A path may use a word that is a method of every module: Flux has sites `double.0`. `ModuleDict`
    refuses such names. Here the part of the path wins, for hosts look parameters up by their names.
    """

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module

    def __getattribute__(self, name: str) -> Any:
        modules = super().__getattribute__("__dict__").get("_modules", {})
        return modules[name] if name in modules else super().__getattribute__(name)


class Encoder(nn.Module):
    """One trained encoder. Its state dict has exactly the tensor names of the native file format.

    Args:
        config: everything that is not a tensor.
        site_dims: inner width (heads * head_dim) of each site of the base model.
        name: how messages call it, usually the file name.
        extras: sizes of the resampler's optional parts; None: it has none.

    Raises:
        CheckpointError: sizes that no encoder has, or an unknown family. The names of a file's
            tensors alone can ask for more layers than a day builds.
    """

    def __init__(
        self,
        config: EncoderConfig,
        site_dims: Mapping[SiteT, int],
        name: str = "encoder",
        extras: ResamplerExtras | None = None,
    ) -> None:
        super().__init__()
        config.check_ranges(name)
        _check_num_sites(name, len(site_dims))
        self.config = config
        self.name = name
        self.family: AnyFamily = family_named(config.family)
        self.site_dims: dict[Site, int] = {
            site: site_dims[site] for site in self.family.in_network_order(site_dims)
        }
        self.resampler = Resampler(config.resampler, extras)
        self.sites = _Level()
        for site, inner_dim in self.site_dims.items():
            self._add_site(site, SiteProjections(config.resampler.output_dim, inner_dim))
        self.requires_grad_(False)
        self.eval()

    def _add_site(self, site: Site, projections: SiteProjections) -> None:
        level = self.sites
        *outer, last = site.path.split(".")
        for part in outer:
            if part not in level:
                level[part] = _Level()
            level = cast("_Level", level[part])
        level[last] = projections

    def encode(
        self, patch_features: Float[Tensor, "references patches embedding_dim"]
    ) -> Float[Tensor, "references queries output_dim"]:
        """Subject tokens z of each photograph, computed in float32.

        Raises:
            SubjectError: more patch features than the encoder has positions for.
        """
        return self.resampler(patch_features.float())

    def projections(self, site: Site) -> SiteProjections:
        """The projections of one site; the same object at every call."""
        level = self.sites
        *outer, last = site.path.split(".")
        for part in outer:
            level = cast("_Level", level[part])
        return cast("SiteProjections", level[last])

    def project(
        self, site: Site, subject_tokens: Float[Tensor, "*batch tokens token_dim"]
    ) -> tuple[Float[Tensor, "*batch tokens inner"], Float[Tensor, "*batch tokens inner"]]:
        """Nested keys and values of one site, before the split into heads, in the tokens' precision."""
        return self.projections(site)(subject_tokens)


def _check_num_sites(name: str, num_sites: int) -> None:
    if num_sites > _MAX_SITES:
        raise CheckpointError(
            f"{name}: holds {num_sites:,} attention sites, expected at most {_MAX_SITES:,}. The file is "
            "damaged or of a model that this project does not know: get it again."
        )
