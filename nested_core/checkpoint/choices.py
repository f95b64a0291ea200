"""What a file cannot tell, or tells wrongly, and the user chooses instead.

A choice becomes part of the encoder's configuration, and so of the hash that ties subjects to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast, get_args

from ..attention import ValueNormMode
from ..config import EncoderConfig, HiddenState, ResamplerConfig
from ..errors import CheckpointError

Value = str | int | float
Choices = Mapping[str, Value]


@dataclass(frozen=True)
class Setting:
    """One setting: its type, and the known values where they are few."""

    kind: type
    known: tuple[str, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether it is of the type, and a known one, some text or a finite number above 0."""
        if self.known:
            return value in self.known
        if self.kind is str:
            return isinstance(value, str) and value.strip() != ""
        is_number = type(value) is int or (self.kind is float and type(value) is float)
        return is_number and 0 < cast("float", value) < float("inf")


SETTINGS: Mapping[str, Setting] = {
    "noun": Setting(str),
    "base": Setting(str),
    "image_encoder.hidden_state": Setting(str, get_args(HiddenState)),
    "image_encoder.image_size": Setting(int),
    "resampler.dim_head": Setting(int),
    "resampler.heads": Setting(int),
    "value_norm.mode": Setting(str, get_args(ValueNormMode)),
    "value_norm.scale": Setting(float),
}
_EXPECTED = {str: "text", int: "a whole number above 0", float: "a number above 0"}


def parse_choices(texts: Iterable[str]) -> dict[str, Value]:
    """Choices as a user writes them, each `value_norm.scale=2`.

    Raises:
        CheckpointError: no `=`, an unknown setting, one chosen twice, or a value of the wrong kind.
    """
    choices: dict[str, Value] = {}
    for text in texts:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator:
            raise CheckpointError(
                f"setting '{text:.80}': expected NAME=VALUE, such as value_norm.scale=2."
            )
        setting = _setting(name)
        if name in choices:
            raise CheckpointError(f"setting '{name}': chosen twice, expected once.")
        try:
            choices[name] = setting.kind(value)
        except ValueError:
            raise _wrong_value(name, value, setting) from None
    return choices


def choose(config: EncoderConfig, choices: Choices, where: str) -> EncoderConfig:
    """The configuration with the choices in place of its own entries.

    The width of the resampler's attention is told by the tensors: of `dim_head` and `heads`, the
    one that was not chosen follows from it.

    Raises:
        CheckpointError: an unknown setting, or a value that no configuration may have.
    """
    if not choices:
        return config
    data: dict[str, Any] = asdict(config)
    for name, value in choices.items():
        setting = _setting(name)
        if not setting.allows(value):
            raise _wrong_value(name, value, setting)
        *outer, last = name.split(".")
        section = data
        for part in outer:
            section = section[part]
        section[last] = value
    chosen = EncoderConfig.from_json(json.dumps(data), f"{where}, with the settings you chose")
    inner_dim = config.resampler.heads * config.resampler.dim_head
    return replace(chosen, resampler=_with_heads(where, chosen.resampler, inner_dim, choices))


def _with_heads(
    where: str, sizes: ResamplerConfig, inner_dim: int, choices: Choices
) -> ResamplerConfig:
    names = ("resampler.heads", "resampler.dim_head")
    chosen = [f"{name} {choices[name]}" for name in names if name in choices]
    if not chosen:
        return sizes
    if "resampler.heads" not in choices:
        sizes = replace(sizes, heads=max(inner_dim // sizes.dim_head, 1))
    elif "resampler.dim_head" not in choices:
        sizes = replace(sizes, dim_head=max(inner_dim // sizes.heads, 1))
    if sizes.heads * sizes.dim_head != inner_dim:
        raise CheckpointError(
            f"{where}: {' and '.join(chosen)} does not fit: the resampler's attention has the width "
            f"{inner_dim}, which must be resampler.heads times resampler.dim_head. Choose a divisor "
            "of it."
        )
    return sizes


def _setting(name: str) -> Setting:
    if name not in SETTINGS:
        raise CheckpointError(
            f"setting '{name:.80}': unknown, expected one of {', '.join(SETTINGS)}. All else is told "
            "by the file's tensors."
        )
    return SETTINGS[name]


def _wrong_value(name: str, value: object, setting: Setting) -> CheckpointError:
    known = f"one of {', '.join(setting.known)}" if setting.known else _EXPECTED[setting.kind]
    return CheckpointError(f"setting '{name}': is '{value!s:.80}', expected {known}.")
