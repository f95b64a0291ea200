"""The settings of a training run: defaults, a TOML or JSON file, the command line; later ones win."""

# ruff: noqa: RUF009  (`_setting` is `dataclasses.field` with a help text)
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from ..attention import ValueNorm, ValueNormMode
from ..config import EncoderConfig, HiddenState, ImageEncoderConfig, NestedKey, ResamplerConfig
from ..preprocess import CropMode
from .errors import TrainingError
from .optimiser import LearningRateSchedule

Precision = Literal["float32", "float16", "bfloat16"]
CacheKind = Literal["none", "disk"]
MixedPrecision = Literal["no", "fp16", "bf16"]


def _setting(default: Any, help: str) -> Any:
    kind = cast("type[Any]", type(default))
    is_plain = kind not in (dict, list)
    given: dict[str, Any] = {"default": default} if is_plain else {"default_factory": kind}
    return field(metadata={"help": help}, **given)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a run is made of, besides how many processes take part in it."""

    output: str = _setting("", "folder of the run: encoder, checkpoints, samples, logs")
    base: str = _setting("", "base model: diffusers folder, hub name or .safetensors checkpoint")
    base_config: str = _setting(
        "", "diffusers folder with configurations, for an offline checkpoint"
    )
    image_encoder: str = _setting("", "CLIP vision model: folder or hub name")
    data: str = _setting("", "folder with metadata.jsonl, or webdataset shards: x/{000..099}.tar")

    cache: CacheKind = _setting(
        "none", "disk: transformers' captions and pictures are encoded before training, once"
    )
    cache_folder: str = _setting("", "where to, for several runs; none: OUTPUT/cache")

    noun: str = _setting("person", "what stands in captions for {subject}")
    resolution: int = _setting(1024, "side of the training pictures, pixels")
    reference_crop: CropMode = _setting("center", "of reference photographs, as in Encode Subject")
    drop_image: float = _setting(0.05, "share of samples whose reference is withheld")
    drop_text: float = _setting(0.05, "share of samples whose caption is the noun alone")
    drop_both: float = _setting(0.05, "share of samples with neither")
    workers: int = _setting(4, "processes that read data, for each training process")
    shuffle_buffer: int = _setting(1000, "samples of shards that are mixed with each other")

    hidden_state: HiddenState = _setting("penultimate", "layer of the image encoder")
    num_queries: int = _setting(1024, "subject tokens")
    resampler_dim: int = _setting(1280, "width of the resampler")
    resampler_depth: int = _setting(4, "layers of the resampler")
    resampler_heads: int = _setting(20, "attention heads of the resampler")
    resampler_dim_head: int = _setting(64, "width of one head")
    value_norm: ValueNormMode = _setting("per_head", "how the subject's values are normalised")
    value_norm_scale: float = _setting(2.0, "their length, in lengths of the text value")
    nested_key: NestedKey = _setting(
        "plain", "model_norm: nested keys pass the norm that the base model has for its text's"
    )
    tokens_like_text: bool = _setting(True, "subject tokens start with the spread of text tokens")
    text_statistics: int = _setting(64, "captions from which that spread is measured")
    initial_encoder: str = _setting("", "encoder file whose weights training starts from")

    steps: int = _setting(50_000, "optimiser steps")
    batch_size: int = _setting(4, "samples per process and micro-step")
    accumulation: int = _setting(1, "micro-steps per optimiser step")
    optimiser: str = _setting("AdamW", "class of torch.optim, or of bitsandbytes (AdamW8bit)")
    optimiser_options: dict[str, Any] = _setting({}, "its options as JSON")
    learning_rate: float = _setting(1e-4, "full learning rate")
    weight_decay: float = _setting(1e-2, "0 where the optimiser takes none")
    schedule: LearningRateSchedule = _setting(
        "constant", "of the learning rate, behind the warm-up"
    )
    warmup_steps: int = _setting(500, "steps until the full learning rate")
    max_grad_norm: float = _setting(1.0, "longer gradients are shortened; 0: never")
    ema_decay: float = _setting(0.9999, "of the average that is shipped; 0: no average")
    min_snr_gamma: float = _setting(0.0, "min-SNR weighting, usually 5; 0: none")
    noise_offset: float = _setting(0.0, "strength of the noise's offset, usually 0.05; 0: none")
    region_weight: float = _setting(
        1.0, "weight of the subject's mask in the loss, 1: as elsewhere"
    )
    mixed_precision: MixedPrecision = _setting("no", "precision of the computation")
    gradient_checkpointing: bool = _setting(False, "less memory, about a third more time")
    shard_base: bool = _setting(
        False, "transformers: each process holds a part of the frozen weights (FSDP)"
    )
    deterministic: bool = _setting(False, "repeatable on GPUs too, slower")
    seed: int = _setting(0, "of everything random")

    save_every: int = _setting(1000, "steps between checkpoints")
    keep: int = _setting(2, "checkpoints that are kept")
    save_precision: Precision = _setting("float16", "of the encoder file")
    log_every: int = _setting(10, "steps between lines of the log")
    tensorboard: bool = _setting(True, "write logs for tensorboard, where it is installed")
    sample_every: int = _setting(1000, "steps between sample grids; 0: none")
    sample_prompts: list[str] = _setting(
        [], "prompts with {subject}, of the sample grids; none: captions of the data"
    )
    sample_steps: int = _setting(30, "denoising steps of a sample")
    guidance: float = _setting(5.0, "classifier-free guidance of a sample")
    distilled_guidance: float = _setting(
        1.0, "guidance that a guidance-distilled base model is told in training"
    )

    def __post_init__(self) -> None:
        numbers = ("steps", "batch_size", "accumulation", "resolution", "save_every", "log_every")
        for name in numbers:
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, expected at least 1.")
        shares = (self.drop_image, self.drop_text, self.drop_both)
        if min(shares) < 0 or sum(shares) > 1:
            raise TrainingError(
                f"drop_image, drop_text and drop_both are {shares}, expected shares of the samples "
                "that sum to 1 at most."
            )

    @property
    def cache_path(self) -> Path | None:
        """Where encoded captions and pictures are kept, if they are."""
        if self.cache == "none":
            return None
        return Path(self.cache_folder) if self.cache_folder else Path(self.output, "cache")

    def encoder_config(
        self, base: str, image_encoder: ImageEncoderConfig, text_dim: int
    ) -> EncoderConfig:
        """What the encoder file will say of itself, for this base model and image encoder."""
        image_encoder = dataclasses.replace(image_encoder, hidden_state=self.hidden_state)
        resampler = ResamplerConfig(
            embedding_dim=image_encoder.hidden_size,
            dim=self.resampler_dim,
            depth=self.resampler_depth,
            dim_head=self.resampler_dim_head,
            heads=self.resampler_heads,
            num_queries=self.num_queries,
            output_dim=text_dim,
        )
        norm = ValueNorm(self.value_norm, self.value_norm_scale)
        return EncoderConfig(
            self.noun, base, image_encoder, resampler, norm, nested_key=self.nested_key
        )

    def to_json(self) -> str:
        """All settings, as a file that `--config` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def parse_arguments(arguments: Sequence[str] | None) -> tuple[TrainingConfig, bool]:
    """The settings, and whether to resume.

    Raises:
        TrainingError: the file cannot be read, or a setting is unknown or of the wrong type.
    """
    given = vars(_parser().parse_args(arguments))
    file, resume = given.pop("config"), given.pop("resume")
    values = {**(read_config_file(Path(file)) if file else {}), **given}
    for name in ("output", "base", "image_encoder", "data"):
        if not values.get(name):
            option = "--" + name.replace("_", "-")
            raise TrainingError(f"{name} is not set. Give {option}, or write it into the file.")
    return TrainingConfig(**values), resume


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings of a TOML or JSON file, each of the type it must have."""
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text) if path.suffix == ".json" else _from_toml(text)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path}: cannot be read as {path.suffix or 'TOML'} ({error})."
        ) from error
    if not isinstance(data, dict):
        raise TrainingError(f"{path}: is no table of settings.")
    values = cast("dict[str, Any]", data)
    return {name: _checked(f"{path.name}: {name}", name, each) for name, each in values.items()}


def _from_toml(text: str) -> Mapping[str, Any]:
    if sys.version_info < (3, 11):
        raise ValueError("Python 3.10 reads no TOML: write the settings as .json")
    import tomllib

    return tomllib.loads(text)


_HINTS = get_type_hints(TrainingConfig)


def _checked(where: str, name: str, value: Any) -> Any:
    if name not in _HINTS:
        raise TrainingError(f"{where}: no such setting. `--help` lists all of them.")
    hint = _HINTS[name]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = ", ".join(get_args(hint))
            raise TrainingError(f"{where} is {value!r}, expected one of {known}.")
        return value
    kind: type = get_origin(hint) or hint
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TrainingError(f"{where} is {value!r}, expected {kind.__name__}.")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nested_core.training",
        description="Trains an encoder for Nested Attention. See docs/training.md.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", default="", metavar="FILE", help="settings as TOML or JSON")
    parser.add_argument(
        "--resume", action="store_true", default=False, help="go on from the last checkpoint"
    )
    defaults = TrainingConfig()
    for each in fields(TrainingConfig):
        default = getattr(defaults, each.name)
        text = f"{each.metadata['help']} (default: {default})".replace("%", "%%")
        hint = _HINTS[each.name]
        options: dict[str, Any] = {"type": hint, "metavar": getattr(hint, "__name__", "").upper()}
        if hint is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif get_origin(hint) is Literal:
            options = {"choices": get_args(hint)}
        elif get_origin(hint) is list:
            options = {"nargs": "+", "metavar": "TEXT"}
        elif get_origin(hint) is dict:
            options = {"type": json.loads, "metavar": "JSON"}
        parser.add_argument("--" + each.name.replace("_", "-"), help=text, **options)
    return parser
