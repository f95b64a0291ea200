"""The seam between the method and the models: the six questions that a family answers.

1. Which sites does a model have, and how wide are they?
2. How are their names written, read and ordered?
3. How do other makers' files name them?
4. Where among a site's keys is the text, and which of its queries are pixels?
5. On which grid do those pixels lie?
6. In which token does a noun end?

Nothing else in this package knows any of it. To everybody else a site is opaque: something hashable
with a `path` and a `text`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from ..sites import SiteSelector, SiteT

IsSame = Callable[[str, str], bool]


class Grid(NamedTuple):
    """How pixels lie: row by row in a frame, frame by frame. Counted in pixels of a site or latent."""

    frames: int
    height: int
    width: int

    @property
    def num_pixels(self) -> int:
        """Of all frames."""
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class Layout:
    """The sites of one base model, each with its inner width.

    `label` is how messages call it.
    """

    name: str
    label: str
    widths: Mapping[Any, int]

    def fits(self, site_dims: Mapping[Any, int]) -> bool:
        """Whether the sites are this layout's, with its widths or all of them scaled alike."""
        if site_dims.keys() != self.widths.keys():
            return False
        return len({site_dims[site] / width for site, width in self.widths.items()}) == 1


@dataclass(frozen=True)
class Projection:
    """A projection of a foreign file: `to_k` or `to_v`, and its site's inner width."""

    kind: str
    width: int


Projections = Mapping[str, Projection]  # by the file's keys


@dataclass
class Places:
    """The site of each key as far as it can be told, with sentences on what could not."""

    sites: dict[str, Any] = field(default_factory=dict[str, Any])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


class Family(ABC, Generic[SiteT]):
    """What is known of one family of models. It has no state.

    Attributes:
        name: as an encoder file's configuration writes it.
        example_path: of a site, for messages.
        layouts: the base models that are known by name.
        tokenizers: the host's short names of its tokenizers. Where two mark one row of the text
            differently, the later one wins.
    """

    name: str
    example_path: str
    layouts: Sequence[Layout]
    tokenizers: Sequence[str]

    # ---- 1: which sites a model has

    @abstractmethod
    def sites_of(self, module_names: Iterable[str]) -> dict[SiteT, str]:
        """The sites of a model and the names of their attention modules, from all its modules' names.

        Each site's inner width is that of the module's keys: `to_k`'s output features.

        Raises:
            SiteError: the names are not those of a model of this family.
        """

    # ---- 2: how sites are written

    @abstractmethod
    def site(self, path: str) -> SiteT:
        """The site of an encoder file's name, `sites.PATH.to_k.weight`.

        A path is made of words and numbers joined by dots, and none goes on where another ends.

        Raises:
            SiteError: no path of this family.
        """

    @abstractmethod
    def parse_sites(self, text: str) -> SiteSelector:
        """A selector as users write it. An empty text selects every site.

        Raises:
            SiteError: the text does not follow the family's grammar.
        """

    @abstractmethod
    def in_network_order(self, sites: Iterable[SiteT]) -> list[SiteT]:
        """The sites as the model runs through them."""

    @abstractmethod
    def describe_sites(self, sites: Iterable[SiteT]) -> str:
        """A short listing for messages, in network order."""

    # ---- 3: how other makers name them

    def find_places(self, projections: Projections, base: Projections, is_same: IsSame) -> Places:
        """The site of each projection of a foreign encoder file. A family need not know any such file.

        Args:
            projections: those to be placed.
            base: what the base model in the same file has of keys and values, self-attention's too.
            is_same: whether the tensors of two keys are equal.
        """
        return Places(problems=[f"Of the family '{self.name}' only native files are known"])

    def layout_of(self, site_dims: Mapping[SiteT, int]) -> Layout | None:
        """The known base model that has these sites, by their inner widths; None where none has."""
        return next((layout for layout in self.layouts if layout.fits(site_dims)), None)

    def base_of(self, site_dims: Mapping[SiteT, int], text_dim: int) -> str:
        """A name for people of the base model with these sites and this width of its text tokens."""
        layout = self.layout_of(site_dims)
        return "unknown" if layout is None else layout.name

    # ---- 4: text among the keys, pixels among the queries

    @abstractmethod
    def text_keys(self, num_keys: int, num_text_tokens: int) -> slice:
        """Which of a site's keys are the text tokens, where the prompt has `num_text_tokens`."""

    @abstractmethod
    def pixel_queries(self, num_queries: int, num_text_tokens: int, num_pixels: int) -> slice:
        """Which of a site's queries are the picture's pixels, where its grid has `num_pixels`."""

    # ---- 5: the grid of those pixels

    @abstractmethod
    def grids(self, latent_size: Grid) -> list[Grid]:
        """The grids that sites of this family have for a latent of this size, finest first."""

    @abstractmethod
    def grid_of(
        self, num_queries: int, told: Sequence[int] | None, latent_size: Grid | None
    ) -> Grid:
        """The grid of a site's pixels; one row of all of them where nobody can tell.

        Args:
            num_queries: how many pixels the site has.
            told: the shape of the block's activations, as the host tells it, or None.
            latent_size: of the latent that the call was planned for, or None.
        """

    def is_whole(self, grid: Grid, arrived: Grid | None, latent_size: Grid | None) -> bool:
        """Whether a site's pixels are all of the planned latent's, not a tile cut out inside the model.

        Args:
            arrived: size of the latent that arrived in the model, or None where the host doesn't tell.
            latent_size: of the latent that the call was planned for, or None.
        """
        if latent_size is None or arrived == latent_size:
            return True
        return arrived is None and grid in self.grids(latent_size)

    # ---- 6: where a noun ends

    @abstractmethod
    def num_characters(self, tokenizer: str, piece: str) -> int:
        """How many characters of the normalised text a token stands for; special tokens are not asked.

        A noun's last token is found with it: the tokens up to it cover as many characters as those
        of the text that ends with the noun (`prompt.mark_tokens`).

        Args:
            tokenizer: one of `tokenizers`.
            piece: the token as its vocabulary writes it.
        """
