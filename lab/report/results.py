"""Everything that was measured, for the JSON file and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..drawing.evaluation import Evaluation
from ..drawing.methods import Method, identities_for
from ..measures import scores
from ..measures.scores import Scores

NONE = "none"


@dataclass(frozen=True, eq=False)
class Results:
    """Scores by method, in the order of the table of methods."""

    evaluation: Evaluation
    scores: Mapping[str, Scores]
    methods: Mapping[str, Method]

    def rows(self) -> list[dict[str, Any]]:
        """One for each method and style."""
        none = self.scores.get(NONE)
        return [
            row
            for name, of_method in self.scores.items()
            for row in scores.rows(name, of_method, none)
        ]

    def pictures(self, name: str, identities: int) -> NDArray[np.float32]:
        """What a method drew of the first identities; they lie on disk already."""
        drawn = self.scores[name].identities
        return self.evaluation.pictures(self.methods[name], drawn)[:identities]


def collect(evaluation: Evaluation, methods: Sequence[Method], identities: int) -> Results:
    """Trains, draws and measures whatever is missing of these methods."""
    by_method: dict[str, Scores] = {}
    for method in methods:
        count = identities_for(method, identities)
        pictures = evaluation.pictures(method, count)
        by_method[method.name] = scores.measure(evaluation.subjects(count), pictures)
    return Results(evaluation, by_method, {method.name: method for method in methods})
