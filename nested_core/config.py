"""What an encoder file says about itself: the `config` of the native format, version 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, cast, get_args

from .attention import ValueNorm, ValueNormMode
from .bounded_json import parse_json
from .errors import CheckpointError, shown
from .families import DEFAULT_FAMILY, FAMILIES
from .words import MAX_NOUN_CHARACTERS, word_problem

HiddenState = Literal["penultimate", "last"]
NestedKey = Literal["plain", "model_norm"]


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The image encoder whose features the resampler reads.

    `hidden_state` is the layer: the last one's output, or its input (`penultimate`). The CLS token
    is part of the features.
    """

    kind: str = "clip_vision"
    hidden_size: int = 1280
    image_size: int = 224
    hidden_state: HiddenState = "penultimate"


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of the resampler; `output_dim` is the width of the text tokens of the base model."""

    embedding_dim: int = 1280
    dim: int = 1280
    depth: int = 4
    dim_head: int = 64
    heads: int = 20
    num_queries: int = 1024
    output_dim: int = 2048
    ff_mult: int = 4


@dataclass(frozen=True)
class EncoderConfig:
    """Everything of an encoder that is not a tensor.

    Attributes:
        base: a name for people.
        family: of the base model, by name; it says what the names of the sites mean.
        nested_key: how nested keys are used, as projected or behind the norm that the model itself
            puts on the keys of its text.
    """

    noun: str
    base: str
    image_encoder: ImageEncoderConfig
    resampler: ResamplerConfig
    value_norm: ValueNorm
    family: str = DEFAULT_FAMILY.name
    nested_key: NestedKey = "plain"

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. Equal configurations give equal text.

        Defaults that older files do not have are left out, so that their hashes stay.
        """
        data = asdict(self)
        for name, default in _LATER_DEFAULTS.items():
            if data[name] == default:
                del data[name]
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str) -> EncoderConfig:
        """A configuration from its JSON.

        Args:
            where: the file, for messages.

        Raises:
            CheckpointError: not JSON, or an entry is missing, of the wrong type or out of range.
        """
        try:
            data: Any = parse_json(text, _MAX_BYTES, _MAX_VALUES, _MAX_DEPTH)
        except ValueError as error:
            raise CheckpointError(
                f"{where}: the metadata entry 'config' is not JSON ({shown(error)}). "
                "The file was not written by this project's tools, or is damaged: get it again."
            ) from error
        section = _Section(where, "config", data)
        later = {name: section.data.get(name, each) for name, each in _LATER_DEFAULTS.items()}
        config = cls(
            noun=section.text("noun"),
            base=section.text("base"),
            image_encoder=section.inner("image_encoder").as_dataclass(ImageEncoderConfig),
            resampler=section.inner("resampler").as_dataclass(ResamplerConfig),
            value_norm=section.inner("value_norm").as_dataclass(ValueNorm),
            family=_choice(where, "config.family", later["family"], tuple(FAMILIES)),
            nested_key=cast(
                "NestedKey",
                _choice(where, "config.nested_key", later["nested_key"], get_args(NestedKey)),
            ),
        )
        _check_image_encoder(config, where)
        config.check_ranges(where)
        return config

    def check_ranges(self, where: str) -> None:
        """Raises CheckpointError where a number is none that an encoder can be built or used with.

        Wherever a configuration came from: its own JSON, or the shapes and keys of another's file.
        """
        for section, ranges in _RANGES.items():
            for name, (low, high) in ranges.items():
                value = getattr(getattr(self, section), name)
                if not low <= value <= high:
                    raise CheckpointError(
                        f"{where}: config.{section}.{name} is {value}, expected at "
                        f"{f'most {high}' if value > high else f'least {low}'} (from {low} to {high}). "
                        f"{_REMEDY}"
                    )


_LATER_DEFAULTS: Mapping[str, str] = {"family": DEFAULT_FAMILY.name, "nested_key": "plain"}

# The widest models of today have a quarter of these sizes. Beyond a hundredfold length a value leaves
# half precision, and below a thousandth nothing is left of the subject.
_MAX_WIDTH = 2**14
_RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "image_encoder": {"hidden_size": (1, _MAX_WIDTH), "image_size": (1, 2048)},
    "resampler": {
        "embedding_dim": (1, _MAX_WIDTH),
        "dim": (1, _MAX_WIDTH),
        "depth": (1, 64),
        "dim_head": (1, 1024),
        "heads": (1, 256),
        "num_queries": (1, _MAX_WIDTH),
        "output_dim": (1, _MAX_WIDTH),
        "ff_mult": (1, 64),
    },
    "value_norm": {"scale": (0.001, 100.0)},
}
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 2**20, 10_000, 32

_T = TypeVar("_T")


class _Section:
    """One JSON object of the config, read with messages that name the place."""

    def __init__(self, where: str, path: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise CheckpointError(
                f"{where}: {path} is {_kind(data)}, expected an object. {_REMEDY}"
            )
        self.where, self.path = where, path
        self.data = cast("Mapping[str, Any]", data)

    def entry(self, key: str) -> Any:
        if key not in self.data:
            keys = shown(", ".join(sorted(self.data)), 400) or "nothing"
            raise CheckpointError(
                f"{self.where}: {self.path} has no '{key}' (it has {keys}). {_REMEDY}"
            )
        return self.data[key]

    def inner(self, key: str) -> _Section:
        return _Section(self.where, f"{self.path}.{key}", self.entry(key))

    def text(self, key: str) -> str:
        value: str = self._typed(key, "str")
        if not value.strip():
            raise CheckpointError(
                f"{self.where}: {self.path}.{key} is empty, expected a word. {_REMEDY}"
            )
        problem = word_problem(value, MAX_NOUN_CHARACTERS)
        if problem is not None:
            raise CheckpointError(
                f"{self.where}: {self.path}.{key}, '{shown(value)}', {problem}. {_REMEDY}"
            )
        return value

    def as_dataclass(self, kind: type[_T]) -> _T:
        values = {field.name: self._typed(field.name, str(field.type)) for field in fields(kind)}  # type: ignore[arg-type]
        return kind(**values)

    def _typed(self, key: str, annotation: str) -> Any:
        value = self.entry(key)
        if annotation in _CHOICES:
            return _choice(self.where, f"{self.path}.{key}", value, _CHOICES[annotation])
        expected: type = {"int": int, "float": float}.get(annotation, str)
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise CheckpointError(
                f"{self.where}: {self.path}.{key} is {_kind(value)}, expected "
                f"{_NAMES[expected]}. {_REMEDY}"
            )
        if expected is not str and not 0 < value < float("inf"):
            raise CheckpointError(
                f"{self.where}: {self.path}.{key} is {value}, expected a number above 0. {_REMEDY}"
            )
        return value


_REMEDY = "Export the encoder again (format version 1 is described in the README)."
_CHOICES: dict[str, tuple[str, ...]] = {
    "HiddenState": get_args(HiddenState),
    "ValueNormMode": get_args(ValueNormMode),
}
_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "text"}


def _kind(value: Any) -> str:
    return shown(json.dumps(value), 60)


def _choice(where: str, path: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise CheckpointError(
            f"{where}: {path} is {_kind(value)}, expected one of {', '.join(known)}. "
            "A newer version of this pack may know it: update the pack."
        )
    return cast("str", value)


def _check_image_encoder(config: EncoderConfig, where: str) -> None:
    _choice(where, "config.image_encoder.kind", config.image_encoder.kind, ("clip_vision",))
    if config.image_encoder.hidden_size != config.resampler.embedding_dim:
        raise CheckpointError(
            f"{where}: the image encoder's hidden_size is {config.image_encoder.hidden_size} but "
            f"the resampler's embedding_dim is {config.resampler.embedding_dim}; they must be "
            f"equal. {_REMEDY}"
        )
