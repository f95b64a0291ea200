"""An exponential moving average of the trained weights, which is what is shipped."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """The average of `parameters`, on their device, in their precision; shard by shard if sharded.

    The decay rises from 2/11 to `decay`, so that the random start is soon forgotten. `decay` 0 keeps
    no average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.averages = [each.detach().clone() for each in parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step `step`, counted from 1."""
        if self.averages:
            decay = min(self.decay, (1 + step) / (10 + step))
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.lerp_(parameter.detach(), 1.0 - decay)

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """The averages in the place of the weights, for saving and for samples."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=False):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The state, by the parameters' order."""
        return {str(index): _local(average) for index, average in enumerate(self.averages)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        for index, average in enumerate(self.averages):
            _local(average).copy_(tensors[str(index)])


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a distributed tensor; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
