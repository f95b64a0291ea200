"""The authors' encoder, and others of its make: keys recognised by rule, sizes read off the shapes.

Nobody here has seen the file `personalization_encoder/model.safetensors` of
`orpatashnik/NestedAttentionEncoder`. That it holds a resampler of IP-Adapter's lineage and keys and
values for each cross-attention layer is known; what its keys are called is not, hence the rules in
`roles.py`. It may hold the whole training module, as `accelerate` saves it. What no tensor tells is
filled in below, `assumptions` says so to whoever inspects a file, and the user may choose otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..attention import ValueNorm
from ..config import EncoderConfig, ImageEncoderConfig, ResamplerConfig
from ..encoder import Encoder
from ..errors import CheckpointError, shown
from ..families import DEFAULT_FAMILY
from .choices import Choices, choose
from .doubles import differences, different_doubles
from .native import assemble, site_dims
from .roles import NEEDED, Reading, read_roles
from .safetensors_file import TensorSpec
from .shards import Source

_DIM_HEAD = 64
# IP-Adapter Plus has the same make, but its tokens mean something else: (queries, text width).
_IP_ADAPTER_SIZES = {(16, 768), (16, 2048)}
# A message stays short enough to be read; `inspect` tells all.
_SHOWN_PROBLEMS = 2
_LETTERS_OF_A_PROBLEM = 320
_SHOWN_KEYS = 20
_LETTERS_OF_A_KEY = 120

# What no tensor tells, by the settings that change it.
_ASSUMPTIONS: Mapping[tuple[str, ...], str] = {
    ("noun",): "noun 'person': the word the authors trained with.",
    ("resampler.dim_head", "resampler.heads"): (
        f"dim_head {_DIM_HEAD}: IP-Adapter's habit; the shapes tell only heads times dim_head."
    ),
    ("image_encoder.hidden_state",): (
        "hidden_state penultimate: IP-Adapter's habit; not known for the authors' encoder."
    ),
    ("image_encoder.image_size",): (
        "image_size 224: the config of the authors' image encoder says so. CLS token included: "
        "IP-Adapter's habit."
    ),
}
_VALUE_NORM = {"value_norm.mode": "per_head", "value_norm.scale": "scale 2"}


def load_official(source: Source, choices: Choices) -> Encoder:
    """The encoder of a file whose keys the rules explain, in the file's precision.

    Raises:
        CheckpointError: keys that no rule explains, different tensors for one role, places that can
            be read in two ways, sizes that make no encoder.
    """
    reading = read_source(source)
    check_reading(source, reading)
    return assemble(source, derived_config(source, reading, choices), reading.names)


def read_source(source: Source) -> Reading:
    """How the file's keys are read; reads tensors only to compare those that stand for the same."""
    difference = differences(source)
    reading = read_roles(source.tensors, lambda one, other: difference(one, other) == 0.0)
    reading.problems += different_doubles(difference, reading.names, reading.doubles)
    return reading


def check_reading(source: Source, reading: Reading) -> None:
    """Raises CheckpointError saying what keeps the file from being read."""
    problems = [shown(text, _LETTERS_OF_A_PROBLEM) for text in reading.problems[:_SHOWN_PROBLEMS]]
    if len(reading.problems) > _SHOWN_PROBLEMS:
        problems.append(f"{len(reading.problems) - _SHOWN_PROBLEMS} more problems like this")
    missing = [name for name in NEEDED if name not in reading.names]
    if missing:
        problems.append(f"Nothing found for {', '.join(missing)}")
    if reading.unexplained:
        # The end of a long key tells most.
        keys = [key[-_LETTERS_OF_A_KEY:] for key in reading.unexplained]
        more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        shown_keys = ", ".join(keys[:_SHOWN_KEYS])
        problems.append(f"{len(keys)} keys not explained: {shown_keys}{more}")
    if problems:
        raise CheckpointError(
            f"{source.where}: cannot be read as an encoder. {'. '.join(problems)}. Expected "
            "IP-Adapter's resampler and one pair of key and value projections for each "
            "cross-attention layer. `python -m nested_core inspect` on the file lists how each key "
            "was read: report it, or convert the file to the native format."
        )


def derived_config(source: Source, reading: Reading, choices: Choices) -> EncoderConfig:
    """The configuration that the shapes tell, completed by the choices and by `assumptions`."""
    specs = {native: source.tensors[key] for native, key in reading.names.items()}
    sizes = _resampler_sizes(source.where, specs, choices)
    _refuse_ip_adapter(source, sizes)
    config = EncoderConfig(
        noun="person",
        base=DEFAULT_FAMILY.base_of(site_dims(specs, DEFAULT_FAMILY), sizes.output_dim),
        image_encoder=ImageEncoderConfig("clip_vision", sizes.embedding_dim, 224, "penultimate"),
        resampler=sizes,
        value_norm=ValueNorm("per_head", 2.0),
    )
    return choose(config, choices, source.where)


def assumptions(choices: Choices) -> list[str]:
    """What is assumed where nothing was chosen, and why."""
    assumed = [
        text
        for settings, text in _ASSUMPTIONS.items()
        if not any(setting in choices for setting in settings)
    ]
    value_norm = [text for setting, text in _VALUE_NORM.items() if setting not in choices]
    if value_norm:
        assumed.append(
            f"value norm {', '.join(value_norm)}: the authors' app uses the factor 2; per head is "
            "not known."
        )
    return assumed


def _resampler_sizes(
    where: str, specs: Mapping[str, TensorSpec], choices: Iterable[str]
) -> ResamplerConfig:
    latents, proj_in, to_q, hidden, proj_out = (specs[name].shape for name in NEEDED)
    dim, inner = latents[2], to_q[0]
    layers = {name.split(".")[2] for name in specs if name.startswith("resampler.layers.")}
    # One head of the whole width stands for a choice, which is checked against it.
    is_chosen = not {"resampler.dim_head", "resampler.heads"}.isdisjoint(choices)
    dim_head = max(inner, 1) if is_chosen else _DIM_HEAD
    sizes = ResamplerConfig(
        embedding_dim=proj_in[1],
        dim=dim,
        depth=len(layers),
        dim_head=dim_head,
        heads=inner // dim_head,
        num_queries=latents[1],
        output_dim=proj_out[0],
        ff_mult=hidden[0] // max(dim, 1),
    )
    if min(vars(sizes).values()) < 1 or sizes.heads * dim_head != inner:
        raise CheckpointError(
            f"{where}: the resampler's shapes give {sizes}, with attention of width {inner}; "
            f"expected sizes above 0 and heads of width {_DIM_HEAD}, as in IP-Adapter. If its heads "
            "have another width, choose it: dim_head of Load Encoder, or "
            "`--set resampler.dim_head=...` of `python -m nested_core convert`."
        )
    return sizes


def _refuse_ip_adapter(source: Source, sizes: ResamplerConfig) -> None:
    is_named_so = {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"} <= source.tensors.keys()
    if is_named_so and (sizes.num_queries, sizes.output_dim) in _IP_ADAPTER_SIZES:
        raise CheckpointError(
            f"{source.where}: is an IP-Adapter Plus ({sizes.num_queries} tokens): its attention is "
            "trained to be added to the text's, not to replace one word's value. Load an encoder "
            "trained for nested attention, or use this file with an IP-Adapter node."
        )
