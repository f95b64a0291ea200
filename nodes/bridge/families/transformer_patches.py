"""What stands around a diffusion transformer's attention while it is called.

All families reach ComfyUI's attention through one function, which the options can override. Ours
lets the host, or the override that was there, compute the layer, and adds what the subjects do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .attention_call import Attention
from .model_call import CALL_KEY, ModelCall, Standing, computes_as_pytorch, current_call
from .transformer_call import TransformerCall

OVERRIDE = "optimized_attention_override"  # ComfyUI's name
_BLOCKS = "dit"  # of `patches_replace`

Attend = Callable[..., Tensor]


class Override(Standing):
    """Stands where ComfyUI looks for another attention function, around the one that was there."""

    def __init__(self, call: TransformerCall, within: Attend | None) -> None:
        super().__init__(call)
        self.within = within

    def __call__(self, function: Attend, *args: Any, **kwargs: Any) -> Tensor:
        return _attend(self.acting, self.within, function, args, kwargs)


class BlockMark(Standing):
    """Stands around a block that does not say in the options which one it is."""

    def __init__(self, call: TransformerCall, number: int, within: Any) -> None:
        super().__init__(call)
        self.number, self.within = number, within

    def __call__(self, arguments: Any, extra: Mapping[str, Any]) -> Any:
        self.acting.enter(self.number)
        if self.within is not None:
            return self.within(arguments, extra)
        return extra["original_block"](arguments)


def _attend(
    call: ModelCall | None,
    within: Attend | None,
    function: Attend,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    base = function if within is None else partial(within, function)
    # Another pack may have put its own around ours, and ours was put around that.
    if not isinstance(call, TransformerCall) or call.is_attending:
        return base(*args, **kwargs)
    attention = Attention.of(*args, **kwargs)
    is_pytorch = within is None and computes_as_pytorch(function, attention.query)
    return call.output(attention, partial(base, *args, **kwargs), is_pytorch)


def _attend_now(within: Attend | None, function: Attend, *args: Any, **kwargs: Any) -> Tensor:
    """For compiled models: asks which call is under way when it runs."""
    return _attend(current_call.get(), within, function, args, kwargs)


class _Traced(partial[Tensor]):
    """What stands in the options of a compiled model, whichever call it is."""


def put_up(options: Mapping[str, Any], call: TransformerCall, marks_blocks: bool) -> dict[str, Any]:
    """A copy of the options in which the subjects of this call act.

    Args:
        marks_blocks: whether the model's blocks do not say which one is running.
    """
    result = {**options, OVERRIDE: Override(call, options.get(OVERRIDE)), CALL_KEY: call}
    if marks_blocks:
        replace = options.get("patches_replace", {})
        table = dict(replace.get(_BLOCKS, {}))
        for number in range(call.num_blocks):
            key = ("double_block", number)
            table[key] = BlockMark(call, number, table.get(key))
        result["patches_replace"] = {**replace, _BLOCKS: table}
    return result


def put_up_compiled(options: Mapping[str, Any], call: TransformerCall) -> dict[str, Any]:
    """A copy of the options with an override that finds the call when it runs."""
    function = cast("Attend", torch.compiler.disable(_attend_now))
    return {**options, OVERRIDE: _Traced(function, options.get(OVERRIDE))}


def take_down(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without anything of ours: some remember those of an earlier or a wider call."""
    options = dict(options)
    found = options.get(OVERRIDE)
    if isinstance(found, Override | _Traced):
        within = found.within if isinstance(found, Override) else found.args[0]
        options = {key: each for key, each in options.items() if key != OVERRIDE}
        options |= {} if within is None else {OVERRIDE: within}
    table = options.get("patches_replace", {}).get(_BLOCKS, {})
    if any(isinstance(each, BlockMark) for each in table.values()):
        kept = {
            key: each.within if isinstance(each, BlockMark) else each for key, each in table.items()
        }
        kept = {key: each for key, each in kept.items() if each is not None}
        options["patches_replace"] = {**options["patches_replace"], _BLOCKS: kept}
    return options
