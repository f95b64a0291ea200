"""Everything that was measured, for the JSON file and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..drawing.catalogue import MAIN, catalogue, identities_for
from ..drawing.evaluation import Evaluation
from ..drawing.methods import Method
from ..measures import scores
from ..measures.bleed import FIGURES, GroupFigures, measure_group
from ..measures.scores import Estimate, Scores, Values, estimate
from ..subjects.groups import SETTINGS

NONE = "none"


@dataclass(frozen=True, eq=False)
class GroupResults:
    """Figures of `count` scenes with several subjects, by setting and method."""

    evaluation: Evaluation
    count: int
    measured: Mapping[tuple[str, str], Sequence[GroupFigures]]

    def of(self, setting: str, method: str, figure: str) -> Values:
        """Pictures in which nothing can be told are not numbers."""
        return np.array([getattr(each, figure) for each in self.measured[setting, method]])

    def estimate(self, setting: str, method: str, figure: str) -> Estimate:
        """The mean and its interval."""
        values = self.of(setting, method, figure)
        return estimate(values[~np.isnan(values)])

    def rows(self) -> list[dict[str, Any]]:
        """One for each setting and method."""
        rows = []
        for setting, method in self.measured:
            row = {"method": f"several: {method}", "style": setting, "n": self.count}
            for figure in FIGURES:
                row |= scores.interval_fields(figure, self.estimate(setting, method, figure))
            rows.append(row)
        return rows


@dataclass(frozen=True, eq=False)
class Results:
    """Scores by method, in the order of the table of methods."""

    evaluation: Evaluation
    scores: Mapping[str, Scores]
    several: GroupResults | None = None

    def measured(self, names: Iterable[str]) -> list[str]:
        """Those of these methods that were measured."""
        return [name for name in names if name in self.scores]

    @property
    def identities_of_others(self) -> int:
        """How many identities ablations and curves drew, those that drew most; 0 without any."""
        main = [method.name for method in MAIN]
        others = [each.identities for name, each in self.scores.items() if name not in main]
        return max(others, default=0)

    def rows(self) -> list[dict[str, Any]]:
        """One for each method and style, then those of several subjects."""
        none = self.scores.get(NONE)
        rows = [
            row
            for name, of_method in self.scores.items()
            for row in scores.rows(name, of_method, none)
        ]
        return [*rows, *(self.several.rows() if self.several else ())]

    def pictures(self, name: str, identities: int) -> NDArray[np.float32]:
        """What a method drew of the first identities; they lie on disk already."""
        drawn = self.scores[name].identities
        return self.evaluation.pictures(catalogue(self.evaluation.model).methods[name], drawn)[
            :identities
        ]


def collect(
    evaluation: Evaluation,
    chosen: Sequence[Method],
    identities: int,
    others: int,
    scenes: int | None,
) -> Results:
    """Trains, draws and measures whatever is missing.

    Args:
        identities: of the main group.
        others: of ablations and curves, at most.
        scenes: how many of each kind with several subjects; none without it.
    """
    by_method: dict[str, Scores] = {}
    for method in chosen:
        count = identities_for(method, identities, others)
        pictures = evaluation.pictures(method, count)
        by_method[method.name] = scores.measure(evaluation.subjects(count), pictures)
    return Results(evaluation, by_method, _collect_groups(evaluation, scenes) if scenes else None)


def _collect_groups(evaluation: Evaluation, count: int) -> GroupResults:
    measured: dict[tuple[str, str], Sequence[GroupFigures]] = {}
    for setting in SETTINGS:
        prompts = evaluation.groups(setting, count)
        for method in catalogue(evaluation.model).several:
            pictures = evaluation.group_pictures(setting, method, count)
            measured[setting, method.name] = list(map(measure_group, prompts, pictures))
    return GroupResults(evaluation, count, measured)
