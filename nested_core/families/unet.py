"""The UNets of SD1.5 and SDXL: cross-attention to a text of one or two CLIP text encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import SiteError
from ..sites import SiteSelector
from ..tensor_names import plain
from .family import Family, Grid, IsSame, Places, Projections
from .unet_names import LAYOUTS, DiffusersPlace, layers_per_block, named_place
from .unet_places import find_places
from .unet_sites import AttentionSite, describe_sites, in_network_order, parse_sites

_BASE_OF_TEXT_WIDTH = {2048: "sdxl", 768: "sd15"}


class UNetFamily(Family[AttentionSite]):
    """Sites are ComfyUI's blocks, all keys are text and all queries pixels."""

    name = "unet"
    example_path = "output.0.4"
    layouts = LAYOUTS
    tokenizers = ("l", "g")

    def sites_of(self, module_names: Iterable[str]) -> dict[AttentionSite, str]:
        """See `Family`. The names may be diffusers' or ComfyUI's."""
        places = {
            name: place
            for name in module_names
            if plain(name).endswith(".attn2") and (place := named_place(name)) is not None
        }
        num_layers = layers_per_block(
            place for place in places.values() if isinstance(place, DiffusersPlace)
        )
        if not places or num_layers is None:
            raise SiteError(
                f"{len(places)} cross-attention layers at places that are none of Stable Diffusion's or "
                "SDXL's UNet. Use a base model of these families."
            )
        return {
            place.site(num_layers) if isinstance(place, DiffusersPlace) else place: name
            for name, place in places.items()
        }

    def site(self, path: str) -> AttentionSite:
        return AttentionSite.from_path(path)

    def parse_sites(self, text: str) -> SiteSelector:
        return parse_sites(text)

    def in_network_order(self, sites: Iterable[AttentionSite]) -> list[AttentionSite]:
        return in_network_order(sites)

    def describe_sites(self, sites: Iterable[AttentionSite]) -> str:
        return describe_sites(sites)

    def find_places(self, projections: Projections, base: Projections, is_same: IsSame) -> Places:
        return find_places(projections, base, is_same)

    def base_of(self, site_dims: Mapping[AttentionSite, int], text_dim: int) -> str:
        """See `Family`. Where no known UNet has the sites, the width of the text says more than nothing."""
        layout = self.layout_of(site_dims)
        return layout.name if layout else _BASE_OF_TEXT_WIDTH.get(text_dim, "unknown")

    def text_keys(self, num_keys: int, num_text_tokens: int) -> slice:
        return slice(0, num_keys)

    def pixel_queries(self, num_queries: int, num_text_tokens: int, num_pixels: int) -> slice:
        return slice(0, num_queries)

    def grids(self, latent_size: Grid) -> list[Grid]:
        """See `Family`. Every downsampler halves and rounds up."""
        grids = [latent_size]
        while max(grids[-1].height, grids[-1].width) > 1:
            frames, height, width = grids[-1]
            grids.append(Grid(frames, -(-height // 2), -(-width // 2)))
        return grids

    def grid_of(
        self, num_queries: int, told: Sequence[int] | None, latent_size: Grid | None
    ) -> Grid:
        """See `Family`. Where it is not told, it is that of the halved grids which has as many pixels."""
        if told is not None:
            return Grid(1, int(told[-2]), int(told[-1]))
        grids = () if latent_size is None else self.grids(latent_size)
        fitting = (grid for grid in grids if grid.num_pixels == num_queries)
        return next(fitting, Grid(1, 1, num_queries))

    def num_characters(self, tokenizer: str, piece: str) -> int:
        """See `Family`. CLIP's vocabulary marks the ends of words."""
        return len(piece.removesuffix("</w>"))


UNET = UNetFamily()
