"""What each key of a foreign file stands for, by rule: a part of the encoder, or something else.

Nobody here has seen the authors' file, so nothing is looked up in a list of its names. In this
order, a key is

* none of the encoder's, where `aside.py` knows what it is;
* a resampler parameter: it ends like one of IP-Adapter's `Resampler`, with as many dimensions,
  under a prefix where the resampler's inside stands;
* a projection: a matrix, and the part of the key nearest its end that holds a word for key or value
  (`to_k_ip`, `v_proj`, `nested_key`) holds words for one of them only; the family tells its site.

A base model's own `to_k` and `to_v` are set aside with it. What no rule explains is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..families import DEFAULT_FAMILY
from ..families.family import IsSame, Projection, Projections
from ..tensor_names import plain, projection_of
from .aside import Group, averaged_copies, frozen_parts, token_embeddings, training_leftovers
from .safetensors_file import TensorSpec

_RESAMPLER = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<name>latents|pos_emb\.weight"
    r"|(?:proj_in|proj_out|norm_out|to_latents_from_mean_pooled_seq\.[01])\.(?:weight|bias)"
    r"|layers\.[0-9]{1,4}\.(?:0\.(?:norm[12]\.(?:weight|bias)|to_(?:q|kv|out)\.weight)"
    r"|1\.(?:0\.(?:weight|bias)|[13]\.weight)))"
)
_VECTOR = re.compile(r".*(?:bias|norm[12]\.weight|norm_out\.weight|\.1\.0\.weight|seq\.0\.weight)")
Specs = Mapping[str, TensorSpec]

# Not proj_in, proj_out and norm_out: every UNet has those.
_INSIDE = ("latents", "layers.")
NEEDED = (
    "resampler.latents",
    "resampler.proj_in.weight",
    "resampler.layers.0.0.to_q.weight",
    "resampler.layers.0.1.1.weight",
    "resampler.proj_out.weight",
)


@dataclass
class Reading:
    """How a file's keys were read.

    Attributes:
        names: for each native name the key that was read as it.
        doubles: for each native name further keys that were read as it; they must be equal.
        aside: what is none of the encoder's.
        unexplained: keys that no rule reads.
        problems: sentences that say why the file cannot be read, beyond unexplained keys.
        notes: sentences on choices that the rules made.
    """

    names: dict[str, str] = field(default_factory=dict[str, str])
    doubles: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    aside: list[Group] = field(default_factory=list[Group])
    unexplained: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def add(self, native: str, key: str) -> None:
        """Notes that `key` is `native`."""
        if native in self.names:
            self.doubles.setdefault(native, []).append(key)
        else:
            self.names[native] = key


def looks_like_encoder(tensors: Specs) -> bool:
    """Whether a file without our metadata holds a resampler's inside and projections."""
    return any(
        (parameter := _resampler_parameter(key, spec)) is not None
        and parameter[1].startswith(_INSIDE)
        for key, spec in tensors.items()
    ) and any(projection_of(key, spec.shape) for key, spec in tensors.items())


def read_roles(tensors: Specs, is_same: IsSame) -> Reading:
    """The native name of every tensor that the rules explain.

    Args:
        is_same: whether the tensors of two keys are equal.
    """
    reading = Reading()
    # In the order of the names: a header's order is its writer's whim.
    tensors = dict(sorted(tensors.items()))
    rest = _without_others(reading, tensors)
    # Keys and values of the base model's own attentions tell its places.
    base_keys = [key for group in reading.aside if group.is_base_model for key in group.keys]
    base = _projections({key: tensors[key] for key in base_keys})
    rest = _read_resampler(reading, rest)
    rest = _read_projections(reading, rest, base, is_same)
    reading.aside += (embeddings := token_embeddings(rest))
    reading.unexplained = list(_without(rest, embeddings))
    return reading


def _without_others(reading: Reading, tensors: Specs) -> Specs:
    """The tensors that may be the encoder's."""

    def is_whole(keys: Iterable[str]) -> bool:
        some = {key: tensors[key] for key in keys}
        parameters = [_resampler_parameter(key, spec) for key, spec in some.items()]
        native_names = {f"resampler.{each[1]}" for each in parameters if each is not None}
        return native_names.issuperset(NEEDED) and bool(_projections(some))

    reading.aside += (leftovers := training_leftovers(tensors))
    rest = _without(tensors, leftovers)
    reading.aside += (parts := frozen_parts(rest))
    rest = _without(rest, parts)
    reading.aside += (copies := averaged_copies(rest, is_whole))
    return _without(rest, copies)


def _without(tensors: Specs, groups: Iterable[Group]) -> dict[str, TensorSpec]:
    taken = {key for group in groups for key in group.keys}
    return {key: spec for key, spec in tensors.items() if key not in taken}


def _read_resampler(reading: Reading, tensors: Specs) -> Specs:
    """Adds the resampler's parameters; the rest of the tensors."""
    parameters = {
        key: parameter
        for key, spec in tensors.items()
        if (parameter := _resampler_parameter(key, spec)) is not None
    }
    prefixes = {prefix for prefix, name in parameters.values() if name.startswith(_INSIDE)}
    inside = {key: name for key, (prefix, name) in parameters.items() if prefix in prefixes}
    names = set(inside.values())
    # Elsewhere such names are read only for what is missing there.
    astray = {key: name for key, (_, name) in parameters.items() if name not in names}
    for key, name in {**inside, **astray}.items():
        reading.add(f"resampler.{name}", key)
    return {key: spec for key, spec in tensors.items() if key not in inside and key not in astray}


def _resampler_parameter(key: str, spec: TensorSpec) -> tuple[str, str] | None:
    """Prefix and name below the resampler."""
    match = _RESAMPLER.fullmatch(plain(key))
    if match is None:
        return None
    name = match["name"]
    dimensions = 3 if name == "latents" else 1 if _VECTOR.fullmatch(name) else 2
    return (match["prefix"], name) if len(spec.shape) == dimensions else None


def _projections(tensors: Specs) -> dict[str, Projection]:
    return {
        key: Projection(kind, spec.shape[0])
        for key, spec in tensors.items()
        if (kind := projection_of(key, spec.shape)) is not None
    }


def _read_projections(
    reading: Reading, tensors: Specs, base: Projections, is_same: IsSame
) -> Specs:
    """Adds the projections; the rest of the tensors."""
    projections = _projections(tensors)
    if not projections:
        reading.problems.append(
            "Nothing found for the key and value projections"
            + (", only the base model's own" if base else "")
        )
        return tensors
    places = DEFAULT_FAMILY.find_places(projections, base, is_same)
    reading.problems += places.problems
    reading.notes += places.notes
    for key, site in places.sites.items():
        reading.add(f"sites.{site.path}.{projections[key].kind}.weight", key)
    return {key: spec for key, spec in tensors.items() if key not in places.sites}
