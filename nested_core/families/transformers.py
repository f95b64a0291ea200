"""The diffusion transformers: blocks in a row, all of one grid of patches.

In joint attention text and pixels ask and answer each other in one attention layer, text first. In
cross-attention a block has a layer of its own for the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import SiteError
from ..sites import SiteSelector
from ..tensor_names import plain
from .block_sites import BlockKind, BlockKinds, BlockSite
from .family import Family, Grid

_DOUBLE, _SINGLE = BlockKind("d", "double"), BlockKind("s", "single")
_BLOCK, _CROSS = BlockKind("b", "blocks"), BlockKind("b", "blocks", ".cross")
_JOINT = BlockKind("b", "joint")

_PATCH = 2  # side of a patch in latent cells, in every released model


@dataclass(frozen=True)
class TransformerFamily(Family[BlockSite]):
    """A family whose sites are numbered blocks.

    Attributes:
        modules: names of a site's attention module by its kind of block, `#` standing for the number:
            ComfyUI's and diffusers'.
        is_joint: whether text and pixels are in one attention, text first.
    """

    name: str
    example_path: str
    modules: Mapping[BlockKind, tuple[str, ...]]
    tokenizers: Sequence[str]
    is_joint: bool = True
    layouts = ()

    @property
    def kinds(self) -> BlockKinds:
        """In the order of the model's run."""
        return BlockKinds(tuple(self.modules))

    def sites_of(self, module_names: Iterable[str]) -> dict[BlockSite, str]:
        """See `Family`. The names may be diffusers' or ComfyUI's."""
        found: dict[BlockSite, str] = {}
        for name in module_names:
            for kind, patterns in self.modules.items():
                number = _number_in(plain(name), patterns)
                if number is not None:
                    found[BlockSite(kind, number)] = name
        if not found:
            raise SiteError(
                f"0 attention layers at places that are those of the family '{self.name}'. Use a base "
                "model of this family."
            )
        return {site: found[site] for site in self.in_network_order(found)}

    def site(self, path: str) -> BlockSite:
        return self.kinds.site(path)

    def parse_sites(self, text: str) -> SiteSelector:
        return self.kinds.parse(text)

    def in_network_order(self, sites: Iterable[BlockSite]) -> list[BlockSite]:
        return self.kinds.in_network_order(sites)

    def describe_sites(self, sites: Iterable[BlockSite]) -> str:
        return self.kinds.describe(sites)

    def text_keys(self, num_keys: int, num_text_tokens: int) -> slice:
        return slice(0, num_text_tokens if self.is_joint else num_keys)

    def pixel_queries(self, num_queries: int, num_text_tokens: int, num_pixels: int) -> slice:
        """See `Family`. Behind the picture there may be reference pictures and padding."""
        start = num_text_tokens if self.is_joint else 0
        return slice(start, start + num_pixels)

    def grids(self, latent_size: Grid, patch: int = _PATCH) -> list[Grid]:
        """See `Family`. Latents are padded to whole patches.

        Args:
            patch: side of a patch in latent cells.
        """
        frames, height, width = latent_size
        return [Grid(frames, -(-height // patch), -(-width // patch))]

    def grid_of(
        self, num_queries: int, told: Sequence[int] | None, latent_size: Grid | None
    ) -> Grid:
        if told is not None:
            return Grid(*(int(each) for each in told))
        return Grid(1, 1, num_queries) if latent_size is None else self.grids(latent_size)[0]

    def num_characters(self, tokenizer: str, piece: str) -> int:
        """See `Family`. CLIP's vocabulary marks the ends of words; the others hold their spaces."""
        return len(piece.removesuffix("</w>") if tokenizer in ("l", "g") else piece)


def _number_in(name: str, patterns: Sequence[str]) -> int | None:
    for pattern in patterns:
        match = re.fullmatch(re.escape(pattern).replace(r"\#", "([0-9]{1,4})"), name)
        if match is not None:
            return int(match[1])
    return None


FLUX = TransformerFamily(
    "flux",
    "single.3",
    {
        _DOUBLE: ("double_blocks.#", "transformer_blocks.#.attn"),
        _SINGLE: ("single_blocks.#", "single_transformer_blocks.#.attn"),
    },
    tokenizers=("l", "t5xxl"),
)
SD3 = TransformerFamily(
    "sd3",
    "joint.3",
    {_JOINT: ("joint_blocks.#", "transformer_blocks.#.attn")},
    tokenizers=("l", "g", "t5xxl"),
)
QWEN_IMAGE = TransformerFamily(
    "qwen_image",
    "blocks.3",
    {_BLOCK: ("transformer_blocks.#.attn",)},
    tokenizers=("qwen25_7b",),
)
LUMINA2 = TransformerFamily(
    "lumina2",
    "blocks.3",
    {_BLOCK: ("layers.#.attention", "layers.#.attn")},
    tokenizers=("gemma2_2b", "qwen3_4b"),
)
COSMOS_PREDICT2 = TransformerFamily(
    "cosmos_predict2",
    "blocks.3.cross",
    {_CROSS: ("blocks.#.cross_attn", "transformer_blocks.#.attn2")},
    tokenizers=("t5xxl", "qwen3_06b"),
    is_joint=False,
)
WAN = TransformerFamily(
    "wan",
    "blocks.3.cross",
    {_CROSS: ("blocks.#.cross_attn", "blocks.#.attn2")},
    tokenizers=("umt5xxl",),
    is_joint=False,
)

TRANSFORMERS = (FLUX, SD3, QWEN_IMAGE, LUMINA2, COSMOS_PREDICT2, WAN)
