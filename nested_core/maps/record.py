"""A record of one sampling: where each subject acted, at which step and in which layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import NestedAttentionError
from ..families import DEFAULT_FAMILY, AnyFamily
from ..shapes import Float
from ..sites import EVERY_SITE, Site, SiteSelector
from .values import ValuePicture

Grid = tuple[int, int]  # height and width of a site

_STEP_TERM = re.compile(r"(?P<first>[0-9]{1,5}|last)(?:\s*-\s*(?P<last>[0-9]{1,5}|last))?")


class MapError(NestedAttentionError):
    """A selection of steps that cannot be read, or a record that holds nothing to show."""


@dataclass(frozen=True)
class StepSelector:
    """Parsed steps: pairs of first and last, `None` standing for the last step; no pairs: every step."""

    terms: tuple[tuple[int | None, int | None], ...] = ()
    text: str = ""

    def matches(self, step: int, num_steps: int) -> bool:
        """Whether a step, counted from 0, is selected."""
        if not self.terms:
            return True
        end = num_steps - 1
        return any(
            (end if first is None else first) <= step <= (end if last is None else last)
            for first, last in self.terms
        )


EVERY_STEP = StepSelector()


def parse_steps(text: str) -> StepSelector:
    """A selector from its text: comma-separated `N`, `A-B`, `last` or `A-last`, counted from 0.

    Raises:
        MapError: a term does not follow the grammar, or a range runs backwards.
    """
    if not text.strip():
        return EVERY_STEP
    terms = tuple(_parse_step_term(term.strip()) for term in text.split(","))
    return StepSelector(terms, text.strip())


def _parse_step_term(term: str) -> tuple[int | None, int | None]:
    match = _STEP_TERM.fullmatch(term)
    if match is None:
        raise MapError(
            f"Steps: cannot read the term '{term}'. Expected comma-separated terms like 0, 5-9, last "
            "or 20-last (the first step is 0), or nothing for every step."
        )
    first, last = match["first"], match["last"] or match["first"]
    start, stop = (None if each == "last" else int(each) for each in (first, last))
    if stop is not None and (start is None or stop < start):
        raise MapError(
            f"Steps: the range {first}-{last} in '{term}' runs backwards. Write {last}-{first}."
        )
    return start, stop


@dataclass(frozen=True)
class RecordPlan:
    """What is recorded.

    Attributes:
        values: whether the pictures of the query-dependent values are made too.
        family: of the model, which knows its sites' names and order.
    """

    steps: StepSelector = EVERY_STEP
    sites: SiteSelector = EVERY_SITE
    values: bool = True
    family: AnyFamily = DEFAULT_FAMILY

    @classmethod
    def from_text(
        cls,
        steps: str = "",
        sites: str = "",
        values: bool = True,
        family: AnyFamily = DEFAULT_FAMILY,
    ) -> RecordPlan:
        """The plan from both selectors as the user writes them.

        Raises:
            MapError, SiteError: a selector that cannot be read.
        """
        return cls(parse_steps(steps), family.parse_sites(sites), values, family)

    def wants_step(self, step: int, num_steps: int) -> bool:
        """Whether the attention of this step, counted from 0, is recorded."""
        return 0 <= step < num_steps and self.steps.matches(step, num_steps)

    def wants_values(self, step: int, num_steps: int) -> bool:
        """Whether the values of this step are recorded: at the last of the wanted steps only.

        Principal components are what costs time, and the last step shows the finished subject.
        """
        if not self.values or not self.wants_step(step, num_steps):
            return False
        return not any(self.wants_step(later, num_steps) for later in range(step + 1, num_steps))


@dataclass(frozen=True, eq=False)
class SiteMap:
    """What one site showed of one token at one step, on the CPU.

    Attributes:
        step: counted from 0.
        picture: index in the batch; of videos, that of a frame, counted through all of them.
        token: as the user writes it, `<anna>`.
        attention: A_s, mean over heads, summed over the token's places in the prompt; float16.
        values: None where they were not recorded.
    """

    step: int
    num_steps: int
    site: Site
    picture: int
    token: str
    attention: Float[Tensor, "height width"]
    values: ValuePicture | None = None

    def __post_init__(self) -> None:
        # A map on the device would stay there for as long as the record is cached.
        assert self.attention.device.type == "cpu"
        assert self.attention.dtype == torch.float16

    @property
    def grid(self) -> Grid:
        """Height and width."""
        height, width = self.attention.shape
        return height, width


_Key = tuple[int, Site, int, str, Grid]


@dataclass(eq=False)
class MapRecord:
    """The maps of one sampling, filled while it runs.

    Attributes:
        num_steps: of that sampling; None where there was none yet.
        num_frames: of each video, each of which counts as a picture.
    """

    plan: RecordPlan
    num_steps: int | None = None
    num_frames: int = 1
    _maps: dict[_Key, SiteMap] = field(default_factory=dict["_Key", SiteMap], repr=False)
    _counts: dict[_Key, int] = field(default_factory=dict["_Key", int], repr=False)

    def begin(self, num_steps: int) -> None:
        """Forgets everything: a sampling starts."""
        self.num_steps, self._maps, self._counts = num_steps, {}, {}

    def become(self, other: MapRecord) -> None:
        """Holds the maps of another record from now on, and no others."""
        self.num_steps, self.num_frames = other.num_steps, other.num_frames
        self._maps = other._maps
        self._counts = other._counts

    def add(self, site_map: SiteMap) -> None:
        """Keeps a map. A second one of the same step, site, picture and token is averaged in.

        That happens with samplers that call the model twice per step, and with several prompts for
        one picture. Values are not averaged, since each has axes of its own: the latest stay.
        """
        key = (site_map.step, site_map.site, site_map.picture, site_map.token, site_map.grid)
        known = self._maps.get(key)
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if known is not None:
            mean = known.attention.float()
            mean += (site_map.attention.float() - mean) / count
            site_map = replace(
                site_map, attention=mean.half(), values=site_map.values or known.values
            )
        self._maps[key] = site_map

    def require_maps(self) -> None:
        """Raises MapError if there is nothing to show; the message says the likely cause."""
        if self._maps:
            return
        if self.num_steps is None:
            raise MapError(
                "Record Maps: nothing was sampled with this node's MODEL yet. Connect it to the "
                "sampler whose LATENT goes into Show Maps. If it is connected, ComfyUI kept the "
                "sampler's old result: queue again with another seed."
            )
        raise MapError(
            f"Record Maps: a sampling of {self.num_steps} steps (0 to {self.num_steps - 1}) left no "
            f"maps; recorded are the steps '{self.plan.steps.text or 'all'}'. Check that the prompt "
            "says a subject's token and was encoded with the CLIP of Apply Nested Attention, that "
            "the subject acts at these steps and sites (strength, start_percent, end_percent, "
            "sites), and that 'steps' names steps that there are."
        )

    @property
    def maps(self) -> list[SiteMap]:
        """All maps in the order in which they came."""
        return list(self._maps.values())

    @property
    def tokens(self) -> list[str]:
        """The tokens in the order of their first appearance."""
        return list(dict.fromkeys(each.token for each in self.maps))

    @property
    def pictures(self) -> list[int]:
        """Indices in the batch."""
        return sorted({each.picture for each in self.maps})

    def select(self, picture: int, token: str | None = None) -> list[SiteMap]:
        """The maps of a picture, perhaps of one token."""
        return [
            each for each in self.maps if each.picture == picture and token in (None, each.token)
        ]

    def mean(self, picture: int, token: str, grid: Grid | None = None) -> Tensor:
        """A_s of a token, averaged over sites and steps, each map counted once.

        Args:
            grid: of the result; the finest of this picture unless given.
        """
        return mean_map(self.select(picture, token), grid or self.finest_grid(picture))

    def by_step(self, picture: int, token: str) -> dict[int, Tensor]:
        """A_s of a token at each recorded step, averaged over sites, on the picture's finest grid."""
        grid = self.finest_grid(picture)
        maps = self.select(picture, token)
        return {
            step: mean_map([each for each in maps if each.step == step], grid)
            for step in sorted({each.step for each in maps})
        }

    def by_resolution(self, picture: int, token: str) -> dict[Grid, Tensor]:
        """A_s of a token in the sites of each grid, finest first, averaged over those and the steps."""
        maps = self.select(picture, token)
        return {
            grid: mean_map([each for each in maps if each.grid == grid], grid)
            for grid in finest_first(each.grid for each in maps)
        }

    def overlap(self, picture: int, tokens: Sequence[str]) -> tuple[Tensor, float]:
        """Where two or more subjects claim the same pixels, and how much of all they claim that is.

        Each subject's mean map is divided by its peak. The overlap at a pixel is the second largest
        of these, in [0, 1]; for two subjects that is the smaller one. The number is the sum of the
        second largest by the sum of the largest: 0 where no pixel listens to two subjects, 1 where
        each pixel listens to two of them alike.
        """
        assert len(tokens) >= 2
        peaked = torch.stack([at_peak(self.mean(picture, token)) for token in tokens])
        first, second = peaked.sort(dim=0, descending=True).values[:2]
        total = float(first.sum())
        return second, float(second.sum()) / total if total > 0 else 0.0

    def values(self, picture: int, token: str) -> list[SiteMap]:
        """The maps of a token that have a picture of its values, in network order."""
        maps = [each for each in self.select(picture, token) if each.values is not None]
        latest = {each.site: each for each in maps}
        return [latest[site] for site in self.plan.family.in_network_order(latest)]

    def finest_grid(self, picture: int) -> Grid:
        """The largest grid of any map of a picture."""
        return finest_first(each.grid for each in self.select(picture))[0]


def finest_first(grids: Iterable[Grid]) -> list[Grid]:
    """Each grid once, the one of the most pixels first."""
    return sorted(set(grids), key=lambda grid: (-grid[0] * grid[1], grid))


def at_peak(attention: Tensor) -> Tensor:
    """The map by its own largest value; zeros stay zeros."""
    return attention / attention.max().clamp_min(torch.finfo(torch.float32).tiny)


def mean_map(maps: Sequence[SiteMap], grid: Grid) -> Tensor:
    """The mean of maps in float32 on one grid: by area where they shrink, bilinear where they grow."""
    total = torch.zeros(grid)
    for own_grid in finest_first(each.grid for each in maps):
        # Resizing is linear: maps of one grid are summed first and resized once.
        own = torch.stack([each.attention for each in maps if each.grid == own_grid])
        total += resize(own.sum(dim=0, dtype=torch.float32), grid)
    return total / max(len(maps), 1)


def resize(attention: Float[Tensor, "height width"], grid: Grid) -> Float[Tensor, "height2 width2"]:
    """The map on another grid."""
    if tuple(attention.shape) == grid:
        return attention
    grows = attention.shape[0] <= grid[0] and attention.shape[1] <= grid[1]
    mode = "bilinear" if grows else "area"
    return functional.interpolate(attention[None, None], size=grid, mode=mode)[0, 0]
