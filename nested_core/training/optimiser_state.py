"""An optimiser's state as named tensors, `PARAMETER.KEY`, which safetensors holds without pickle."""

# torch's distributed parts are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import TrainingError
from .files import shown

Values = dict[str, Any]
State = dict[str, Values]  # by parameter and key; tensors or plain numbers
MakeOptimiser = Callable[[Iterable[nn.Parameter]], Optimizer]

# Before, `weights_only` could be got around (CVE-2025-32434).
_SAFE_TORCH = (2, 6)


def read_state(optimiser: Any, names: list[str]) -> State:
    """What the optimiser keeps of each parameter; `names` in the optimiser's order."""
    by_index: dict[int, Values] = optimiser.state_dict()["state"]
    return {names[index]: values for index, values in by_index.items()}


def put_state(optimiser: Any, names: list[str], state: State) -> None:
    """Takes `state` in. The groups' settings stay this run's own."""
    index_of = {name: index for index, name in enumerate(names)}
    groups = optimiser.state_dict()["param_groups"]
    by_index = {index_of[name]: values for name, values in state.items() if values}
    optimiser.load_state_dict({"state": by_index, "param_groups": groups})


def flatten(state: State, names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def unflatten(where: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> State:
    """What `flatten` was given, with nothing kept of the parameters that had no state.

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
            f"{where}: its notes are {shown(dict(notes))}, expected numbers by parameter, and names."
        ) from error


def check_state(where: str, state: State, make: MakeOptimiser, model: nn.Module) -> None:
    """Raises TrainingError where `state` is not what such an optimiser keeps of these parameters."""
    parameters = dict(model.named_parameters())
    extra = sorted(set(state) - set(parameters))
    if extra:
        raise TrainingError(
            f"{where}: holds the state of {shown(extra[0])} and {len(extra) - 1} others that are no "
            f"parameters of this run; expected its {len(parameters)}."
        )
    kept: dict[Any, Values] = {}
    for name, parameter in parameters.items():
        if state.get(name) == {}:
            continue
        kind = (parameter.shape, parameter.dtype, parameter.device)
        if kind not in kept:
            kept[kind] = _state_of_a_first_step(make, parameter)
        found, expected = (_described(each) for each in (state.get(name, {}), kept[kind]))
        if found != expected:
            raise TrainingError(
                f"{where}: holds {shown(found)} of {name}, expected {shown(expected)}."
            )


def _state_of_a_first_step(make: MakeOptimiser, like: nn.Parameter) -> Values:
    """Tried out, since only the optimiser itself knows what it keeps."""
    parameter = nn.Parameter(torch.zeros_like(like))
    parameter.grad = torch.zeros_like(parameter)
    optimiser = make([parameter])
    optimiser.step()
    return cast("Values", optimiser.state[parameter])


def _described(values: Values) -> dict[str, str]:
    return {
        key: f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else "a number"
        for key, value in sorted(values.items())
        if value is not None
    }


def unpickled(path: Path) -> Any:
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
            f"{path.name}: cannot be read safely ({type(error).__name__}: {shown(reason)}), expected "
            "a pickle file with numbers and tensors alone; code in it is never run."
        ) from error
