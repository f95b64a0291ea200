"""What a checkpoint holds besides its place in the data, and in which files.

    model.safetensors       the trained weights
    average-N.safetensors   their moving average, where there is one; of each process, if sharded
    optimizer.safetensors   the optimiser's state, `PARAMETER.KEY`
    generators-N.json       the generators of each process

None of them is a pickle file: those can run code. Version 1 of the format held the optimiser in
accelerate's `optimizer.bin` and the gradient scaler in `scaler.pt`; these are read without running
what is in them.
"""

# accelerate and torch's distributed parts are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..checkpoint.weights import listing
from .errors import DivergedError, TrainingError
from .files import (
    check_same_tensors,
    read_notes,
    read_object,
    read_tensors,
    replace_file,
    short_repr,
    whole_number,
    write_tensors,
)
from .optimiser import (
    MakeOptimiser,
    MovingAverage,
    State,
    check_state,
    flatten_state,
    load_named_state,
    load_pickle,
    named_state,
    unflatten_state,
)
from .processes import generator_states, restore_generators

_WEIGHTS = "model.safetensors"
_OPTIMISER = "optimizer.safetensors"
_PICKLED_OPTIMISER = "optimizer.bin"
_PICKLED_SCALER = "scaler.pt"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The parts of a run that change from step to step.

    Attributes:
        model: the trained module as accelerate has wrapped it, or plain.
        make_optimiser: another one like `optimiser`, for other parameters.
    """

    accelerator: Accelerator
    model: nn.Module
    optimiser: Any
    average: MovingAverage
    make_optimiser: MakeOptimiser

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only (FSDP)."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def plain_model(self) -> nn.Module:
        """The module without the distributed wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def check_finite(self, step: int) -> None:
        """Raises DivergedError where a weight is no number: earlier checkpoints are worth more."""
        named = self.plain_model.named_parameters()
        wrong = [name for name, weight in named if not bool(weight.isfinite().all())]
        if wrong:
            listed = listing("weights are no numbers", wrong)
            raise DivergedError(step, f"the training has diverged, {listed}")

    def average_name(self) -> str:
        """The file of this process's average."""
        shard = self.accelerator.process_index if self.is_sharded else 0
        return f"average-{shard}.safetensors"

    def gather(self) -> tuple[dict[str, Tensor], State]:
        """Weights and optimiser state. All processes take part; the main one has the whole."""
        weights = cast("dict[str, Tensor]", self.accelerator.get_state_dict(self.model))
        if self.is_sharded:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole = get_optimizer_state_dict(self.model, self._raw_optimiser, options=options)
            return weights, cast("State", whole.get("state", {}))
        return weights, named_state(self.optimiser, self._names())

    def _names(self) -> list[str]:
        """Of the trained parameters, in the optimiser's order."""
        return [name for name, _ in self.plain_model.named_parameters()]

    @property
    def _raw_optimiser(self) -> Any:
        return getattr(self.optimiser, "optimizer", self.optimiser)

    def write(self, folder: Path, weights: dict[str, Tensor], state: State) -> None:
        """This process's files.

        Raises:
            TrainingError: the disk refuses, or the optimiser keeps what no checkpoint can hold.
        """
        is_main = self.accelerator.is_main_process
        if is_main:
            write_tensors(folder / _WEIGHTS, weights)
            tensors, notes = flatten_state(state, self._names())
            write_tensors(folder / _OPTIMISER, tensors, notes)
        if self.average.averages and (is_main or self.is_sharded):
            write_tensors(folder / self.average_name(), self.average.tensors())
        states = json.dumps(generator_states(self.accelerator.device))
        replace_file(folder / self._generators_name(), states.encode())

    def _generators_name(self) -> str:
        return f"generators-{self.accelerator.process_index}.json"

    def scaler_state(self) -> dict[str, Any] | None:
        """The gradient scaler's numbers; None where the precision needs none."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def read(self, folder: Path, run: dict[str, Any]) -> None:
        """Puts everything back.

        Args:
            run: the checkpoint's `run.json`.

        Raises:
            TrainingError, CheckpointError: a file is missing, damaged or of another encoder.
        """
        is_old = run["version"] == 1
        weights, state = self._read_files(folder, is_old)
        self._put(weights, state)
        if self.average.averages:
            name = self.average_name()
            tensors = read_tensors(folder / name)
            check_same_tensors(name, tensors, self.average.tensors())
            self.average.load(tensors)
        if self.accelerator.scaler is not None:
            scaler = load_pickle(folder / _PICKLED_SCALER) if is_old else run.get("scaler")
            self._put_scaler(scaler)
        # Version 1 kept the generators in pickle files. Nothing random comes from them.
        if not is_old and len(run["resume"]) == self.accelerator.num_processes:
            name = self._generators_name()
            restore_generators(name, read_object(folder / name), self.accelerator.device)

    def _read_files(self, folder: Path, is_old: bool) -> tuple[dict[str, Tensor], State]:
        if self.is_sharded and not self.accelerator.is_main_process:
            return {}, {}  # the main process sends them
        # Version 1 wrote the names as the distributed wrapper gives them.
        tensors = read_tensors(folder / _WEIGHTS)
        weights = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        model = self.plain_model
        if not self.is_sharded:
            check_same_tensors(_WEIGHTS, weights, model.state_dict())
        where = _PICKLED_OPTIMISER if is_old else _OPTIMISER
        if is_old:
            state = _by_name(load_pickle(folder / where), self._names())
        else:
            notes = read_notes(folder / where)
            state = unflatten_state(where, read_tensors(folder / where), notes)
        if not self.is_sharded:
            check_state(where, state, self.make_optimiser, model)
        return weights, state

    def _put(self, weights: dict[str, Tensor], state: State) -> None:
        if not self.is_sharded:
            self.plain_model.load_state_dict(weights)
            return load_named_state(self.optimiser, self._names(), state)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        optimiser = self._raw_optimiser
        groups = get_optimizer_state_dict(self.model, optimiser, options=options)["param_groups"]
        whole = cast("Any", {"state": state, "param_groups": groups})
        set_model_state_dict(self.model, cast("Any", weights), options=options)
        set_optimizer_state_dict(self.model, optimiser, whole, options=options)

    def _put_scaler(self, state: Any) -> None:
        scaler = cast("Any", self.accelerator.scaler)
        expected: dict[str, Any] = scaler.state_dict()
        is_alike = isinstance(state, dict) and state.keys() == expected.keys()
        if not is_alike or not all(
            type(value) in (int, float) and 0 <= value < 2.0**127 for value in state.values()
        ):
            raise TrainingError(
                f"The gradient scaler's state is {short_repr(state)}, expected numbers like "
                f"{short_repr(expected)}."
            )
        scaler.load_state_dict(state)

    def expected_files(self, run: dict[str, Any]) -> set[str]:
        """The names that `read` knows; whatever else is in the folder is left out."""
        num_processes = whole_number("the number of processes", len(run["resume"]))
        names = {f"average-{shard}.safetensors" for shard in range(num_processes)} | {_WEIGHTS}
        if run["version"] > 1:
            generators = {f"generators-{process}.json" for process in range(num_processes)}
            return names | generators | {_OPTIMISER}
        scaler = {_PICKLED_SCALER} if self.accelerator.scaler is not None else set[str]()
        return names | scaler | {_PICKLED_OPTIMISER}


def _by_name(loaded: Any, names: list[str]) -> State:
    """Version 1's state, by the parameters' number."""
    match loaded:
        case {"state": dict(by_index)} if all(
            type(index) is int and 0 <= index < len(names) and isinstance(values, dict)
            for index, values in cast("dict[Any, Any]", by_index).items()
        ):
            values_of = cast("dict[int, dict[str, Any]]", by_index)
            return {name: values_of.get(index, {}) for index, name in enumerate(names)}
        case _:
            raise TrainingError(
                f"{_PICKLED_OPTIMISER}: holds {short_repr(loaded)}, expected the state of an optimiser of "
                f"{len(names)} parameters."
            )
