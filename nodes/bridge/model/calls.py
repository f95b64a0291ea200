"""From conditionings to one call of the model, and back: who acts in which row, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ....nested_core.call.rules import Rules
from ..families.host_family import HostFamily
from ..families.model_call import CALL_KEY, ModelCall, current_call, resting, traced_apart
from ..text.conditioning import facts_in, slot_map_of, without_facts
from ..wrappers import with_innermost, without_innermost
from .compiling import is_compiled
from .inside import PlannedRun, is_wrapped
from .planning import Conditionings, Planning, is_bound
from .sampling import SAMPLING_KEY, Sampling
from .surroundings import FUNCTION_WRAPPER, function_around, has_strangers

# Of what ComfyUI calls the model with; the rest is each family's own.
_NAMED = ("c_concat", "c_crossattn", "control", "transformer_options")


class ModelCalls:
    """What ComfyUI calls around each run of the model. Never changed afterwards."""

    def __init__(self, rules: Rules, host: HostFamily) -> None:
        self._planning, self._host = Planning(rules, host), host

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelCalls:
        return self  # packs copy options with all the wrappers in them, and subjects behind those

    def predict_noise(
        self,
        executor: Callable[..., Any],
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any] = MappingProxyType({}),
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Remembers the pictures, of which other packs' windows will be parts."""
        _sampling_of(model_options).pictures = x
        return executor(x, timestep, model_options, *args, **kwargs)

    def calc_cond_batch(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: Conditionings,
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Gives every conditioning of this call a slot map, so that they can still be batched."""
        sampling = _sampling_of(model_options)
        sampling.sent = None
        around, name = function_around(model, model_options)
        if around is not None:
            sampling.surroundings.add(name)
            wrapper = partial(self._call_around, around, model, sampling)
            model_options = {**model_options, FUNCTION_WRAPPER: wrapper}
        if any(slot_map_of(each) is not None for group in conds for each in group or ()):
            is_direct = around is None and not has_strangers(
                model_options.get("transformer_options", {})
            )
            conds, sampling.sent = self._planning.send(
                conds, x_in, model_options, sampling, is_direct
            )
        return executor(model, conds, x_in, timestep, model_options, *args, **kwargs)

    def _call_around(
        self,
        around: Callable[..., Tensor],
        model: Any,
        sampling: Sampling,
        apply_model: Callable[..., Tensor] | None,
        arguments: Mapping[str, Any],
    ) -> Tensor:
        """Around a function that another pack put in front of the UNet.

        It may run the UNet's blocks by itself, so the subjects stand in its options already. Where
        it calls the UNet after all, these are taken down again and planned for what arrives there.
        """
        conditions, latent = dict(arguments["c"]), arguments["input"]
        options = self._take_down(conditions.get("transformer_options") or {})
        # Of several devices, the one that runs.
        base_model = getattr(apply_model, "__self__", model)
        context = conditions.get("c_crossattn")
        arrival = self._planning.arrival(sampling, latent, context, facts_in(conditions))
        call = self._planning.call(
            base_model, latent, arguments["timestep"], arrival, options, conditions, sampling
        )
        if not is_bound(arrival):
            options.pop(SAMPLING_KEY, None)
        if call.plan.groups and arrival is not None:
            planned = PlannedRun(call, base_model, latent, arguments["timestep"], context, arrival)
            options = self._put_up(options, planned, sampling)
        conditions["transformer_options"] = options
        return _run(call, partial(around, apply_model, {**arguments, "c": conditions}))

    def around_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The same around other packs' wrappers of the model, which may run its blocks as well."""
        arguments = _arguments(*args, **kwargs)
        options = arguments["c"]["transformer_options"]
        sampling = options.get(SAMPLING_KEY) or Sampling.unknown()
        around = partial(_go_on, executor)
        return self._call_around(around, executor.class_obj, sampling, None, arguments)

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Puts the subjects into the options for this call alone, where any is to act."""
        arguments = _arguments(*args, **kwargs)
        x, t, conditions = arguments["input"], arguments["timestep"], arguments["c"]
        context, base_model = conditions["c_crossattn"], executor.class_obj
        options = self._take_down(conditions["transformer_options"])
        sampling = options.pop(SAMPLING_KEY, None) or Sampling.unknown()
        arrival = self._planning.arrival(sampling, x, context, facts_in(conditions))

        def run(options: dict[str, Any]) -> Any:
            given = {**without_facts(conditions), "transformer_options": options}
            return _go_on(executor, None, {**arguments, "c": given})

        # Where a function in front calls the UNet after all, what arrives here counts.
        with resting(current_call.get()):
            compiled = is_compiled(base_model, options)
            if not compiled and not is_bound(arrival):
                return run(options)
            call = self._planning.call(base_model, x, t, arrival, options, conditions, sampling)
            if compiled:
                with traced_apart():
                    return _run(call, partial(run, self._host.put_up_compiled(options, call)))
            if not call.plan.groups or arrival is None:
                return run(options)
            if is_wrapped(base_model, options):
                planned = PlannedRun(call, base_model, x, t, context, arrival)
                options = self._put_up(options, planned, sampling)
            else:
                options = self._host.put_up(options, call)
            return _run(call, partial(run, options))

    def _take_down(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options without anything of ours."""
        options = {key: each for key, each in options.items() if key != CALL_KEY}
        return self._host.take_down(without_innermost(options, CALL_KEY))

    def _put_up(
        self, options: Mapping[str, Any], planned: PlannedRun, sampling: Sampling
    ) -> dict[str, Any]:
        """Where somebody stands between here and the UNet itself."""
        result = self._host.put_up(options, planned.call)
        return with_innermost(result, CALL_KEY, partial(self._innermost, planned, sampling))

    def _innermost(
        self,
        planned: PlannedRun,
        sampling: Sampling,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Behind everything that other packs have put around the model: plans anew what they changed."""
        run = partial(executor, x, timesteps, context)
        arrival = planned.arrival if planned.call.is_over else planned.arrival_of(x, context)
        if arrival is planned.arrival:
            return run(*args, **kwargs)
        self._planning.say_lost(arrival, len(x), sampling)
        options = self._take_down(_options_in(args, kwargs))
        with resting(planned.call):
            call = self._planning.call(
                planned.base_model, x, planned.noise_level, arrival, options, kwargs, sampling
            )
            args, kwargs = _with_options(args, kwargs, self._host.put_up(options, call))
            return _run(call, partial(run, *args, **kwargs))


def _options_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """ComfyUI's options among what a model is called with: by name, or behind all other mappings."""
    found = [each for each in args if isinstance(each, Mapping)]
    return kwargs.get("transformer_options") or (found[-1] if found else {})


def _with_options(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with these options in the others' place."""
    found = [number for number, each in enumerate(args) if isinstance(each, Mapping)]
    if "transformer_options" in kwargs or not found:
        return args, {**kwargs, "transformer_options": options}
    return (*args[: found[-1]], options, *args[found[-1] + 1 :]), dict(kwargs)


def _arguments(
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> dict[str, Any]:
    """What ComfyUI calls the model with, as a function in front of the UNet is given it."""
    named = (c_concat, c_crossattn, control, transformer_options or {})
    conditions.update(zip(_NAMED, named, strict=True))
    return {"input": x, "timestep": t, "c": conditions}


def _go_on(executor: Callable[..., Tensor], _: None, arguments: Mapping[str, Any]) -> Tensor:
    """The wrappers behind ours, called with what a function in front of the UNet is given."""
    conditions = dict(arguments["c"])
    named = [conditions.pop(name) for name in _NAMED]
    return executor(arguments["input"], arguments["timestep"], *named, **conditions)


def _run(call: ModelCall, function: Callable[[], Tensor]) -> Tensor:
    """The function's result, the call being known while it runs and over when it ends."""
    before = current_call.set(call)
    try:
        out = function()
        if call.watch is not None and not call.is_over:
            call.watch.finish()
        return out
    finally:
        call.is_over = True
        current_call.reset(before)


def _sampling_of(model_options: Mapping[str, Any]) -> Sampling:
    return model_options.get("transformer_options", {}).get(SAMPLING_KEY) or Sampling.unknown()
