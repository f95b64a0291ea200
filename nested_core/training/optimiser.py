"""The optimiser: made by name, its learning rate, its state as tensors, and the weights' average.

Its state becomes named tensors, `PARAMETER.KEY`, which safetensors holds without pickle.
"""

# torch's distributed parts are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import TrainingError
from .files import short_repr

LearningRateSchedule = Literal["constant", "linear", "cosine"]
Values = dict[str, Any]
State = dict[str, Values]  # by parameter and key; tensors or plain numbers
MakeOptimiser = Callable[[Iterable[nn.Parameter]], Optimizer]

# Before, `weights_only` could be got around (CVE-2025-32434).
_SAFE_TORCH = (2, 6)


def make_optimiser(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> Optimizer:
    """An optimiser of `torch.optim` by its class's name; one of bitsandbytes where torch has none.

    Raises:
        TrainingError: no such optimiser, or it does not take these options.
    """
    kind = _optimiser_class(name)
    try:
        return kind(parameters, lr=learning_rate, **options)
    except TypeError as error:
        raise TrainingError(
            f"optimiser {name}: does not take the options {dict(options)} ({error}). "
            "Correct `optimiser_options`."
        ) from error


def _optimiser_class(name: str) -> Any:
    known = {
        each: value
        for each, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    if name in known:
        return known[name]
    try:
        return getattr(importlib.import_module("bitsandbytes.optim"), name)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"optimiser {name}: torch.optim has {', '.join(known)}; bitsandbytes (8-bit, such as AdamW8bit) "
            f"says: {error}. Choose one of these, or install bitsandbytes."
        ) from error


def learning_rate_factor(
    kind: LearningRateSchedule, step: int, warmup_steps: int, total_steps: int
) -> float:
    """The share of the full learning rate that step `step` (from 0) is taken with."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_learning_rate(optimiser: Any, learning_rate: float) -> None:
    """For every group; a schedule without a state of its own has nothing to save or to lose."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


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


def named_state(optimiser: Any, names: list[str]) -> State:
    """What the optimiser keeps of each parameter; `names` in the optimiser's order."""
    by_index: dict[int, Values] = optimiser.state_dict()["state"]
    return {names[index]: values for index, values in by_index.items()}


def load_named_state(optimiser: Any, names: list[str], state: State) -> None:
    """Takes `state` in. The groups' settings stay this run's own."""
    index_of = {name: index for index, name in enumerate(names)}
    groups = optimiser.state_dict()["param_groups"]
    by_index = {index_of[name]: values for name, values in state.items() if values}
    optimiser.load_state_dict({"state": by_index, "param_groups": groups})


def flatten_state(state: State, names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `PARAMETER.KEY`, and as JSON what is no tensor.

    Args:
        names: of all parameters; some may never have had a gradient, and so no state.

    Raises:
        TrainingError: the optimiser keeps something else than tensors and numbers.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Values] = {}
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            elif isinstance(value, (bool, int, float)):
                numbers.setdefault(name, {})[key] = value
            elif value is not None:
                raise TrainingError(
                    f"The optimiser keeps {type(value).__name__} '{key}' of a parameter, which a "
                    "checkpoint cannot hold: expected tensors and numbers. Choose another optimiser."
                )
    return tensors, {"numbers": numbers, "stateless": sorted(set(names) - set(state))}


def unflatten_state(where: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> State:
    """What `flatten_state` was given, with nothing kept of the parameters that had no state.

    Raises:
        TrainingError: the notes are others.
    """
    state: State = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        state.setdefault(name, {})[key] = tensor
    numbers, stateless = notes.get("numbers", {}), notes.get("stateless", [])
    try:
        for name, values in numbers.items():
            state.setdefault(name, {}).update(values)
        return {**{str(name): {} for name in stateless}, **state}
    except (AttributeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{where}: its notes are {short_repr(dict(notes))}, expected numbers by parameter, and names."
        ) from error


def check_state(where: str, state: State, make: MakeOptimiser, model: nn.Module) -> None:
    """Raises TrainingError where `state` is not what such an optimiser keeps of these parameters."""
    parameters = dict(model.named_parameters())
    extra = sorted(set(state) - set(parameters))
    if extra:
        raise TrainingError(
            f"{where}: holds the state of {short_repr(extra[0])} and {len(extra) - 1} others that are no "
            f"parameters of this run; expected its {len(parameters)}."
        )
    kept: dict[Any, Values] = {}
    for name, parameter in parameters.items():
        if state.get(name) == {}:
            continue
        kind = (parameter.shape, parameter.dtype, parameter.device)
        if kind not in kept:
            kept[kind] = _state_after_one_step(make, parameter)
        saved, expected = (_shapes_and_dtypes(each) for each in (state.get(name, {}), kept[kind]))
        if saved != expected:
            raise TrainingError(
                f"{where}: holds {short_repr(saved)} of {name}, expected {short_repr(expected)}."
            )


def _state_after_one_step(make: MakeOptimiser, like: nn.Parameter) -> Values:
    """Tried out, since only the optimiser itself knows what it keeps."""
    parameter = nn.Parameter(torch.zeros_like(like))
    parameter.grad = torch.zeros_like(parameter)
    optimiser = make([parameter])
    optimiser.step()
    return cast("Values", optimiser.state[parameter])


def _shapes_and_dtypes(values: Values) -> dict[str, str]:
    return {
        key: f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else "a number"
        for key, value in sorted(values.items())
        if value is not None
    }


def load_pickle(path: Path) -> Any:
    """What an earlier version's pickle file holds, read without letting it run code.

    Raises:
        TrainingError: it is damaged or holds more than numbers and tensors, or this torch cannot be
            trusted to read such a file.
    """
    if cast("Any", torch.__version__) < _SAFE_TORCH:  # it compares itself with numbers
        raise TrainingError(
            f"{path.name}: is a pickle file, which torch {torch.__version__} cannot read safely; "
            "expected torch 2.6 or newer. Update torch."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        reason = str(error).split("\n", 1)[0]
        raise TrainingError(
            f"{path.name}: cannot be read safely ({type(error).__name__}: {short_repr(reason)}), expected "
            "a pickle file with numbers and tensors alone; code in it is never run."
        ) from error
