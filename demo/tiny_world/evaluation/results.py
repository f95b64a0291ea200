"""Everything that was measured, for the JSON file and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import scores
from .methods import Method, identities_for
from .orders import Sitter
from .running import Evaluation
from .scores import Scores

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
            row for name, found in self.scores.items() for row in scores.rows(name, found, none)
        ]

    def pictures(self, name: str, identities: int) -> NDArray[np.float32]:
        """What a method drew of the first identities; they lie on disk already."""
        found = self.scores[name].identities
        return self.evaluation.pictures(self.methods[name], found)[:identities]

    def sitters(self, name: str) -> list[Sitter]:
        """Whom a method drew."""
        return self.evaluation.sitters(self.scores[name].identities)


def collect(evaluation: Evaluation, methods: Sequence[Method], identities: int) -> Results:
    """Trains, draws and measures whatever is missing of these methods."""
    found = {
        method.name: evaluation.scores(method, identities_for(method, identities))
        for method in methods
    }
    return Results(evaluation, found, {method.name: method for method in methods})
