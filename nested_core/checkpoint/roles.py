"""What a foreign key stands for, by rule: resampler parameters, and keys and values of each site.

Nobody here has seen the authors' file, so nothing is looked up in a list of names. A key is
explained where exactly one of these rules reads it:

* resampler: the key ends like a parameter of IP-Adapter's `Resampler` and has as many dimensions;
* projection: a matrix, and the part of the key nearest its end that holds a word for key or value
  (`to_k_ip`, `v_proj`, `nested_key`) holds words for one of them only;
* its place: named as diffusers or ComfyUI name blocks, else the only number that differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..sites import AttentionSite
from .layouts import DiffusersPlace, Numbering, known_numberings, layers_per_block, named_place
from .safetensors_file import TensorSpec

_RESAMPLER = re.compile(
    r"(?:.*\.)?(?P<name>latents|(?:proj_in|proj_out|norm_out)\.(?:weight|bias)"
    r"|layers\.[0-9]{1,4}\.(?:0\.(?:norm[12]\.(?:weight|bias)|to_(?:q|kv|out)\.weight)"
    r"|1\.(?:0\.(?:weight|bias)|[13]\.weight)))"
)
_VECTOR = re.compile(r".*(?:bias|norm[12]\.weight|norm_out\.weight|\.1\.0\.weight)")
_KEY_WORDS = {"k", "key", "keys", "wk"}
_VALUE_WORDS = {"v", "value", "values", "wv"}


@dataclass
class Reading:
    """How a file's keys were read.

    Attributes:
        names: for each native name the key that was read as it.
        unexplained: keys that no rule reads.
        problems: sentences that say why the file cannot be read, beyond unexplained keys.
        notes: sentences on choices that the rules made.
    """

    names: dict[str, str] = field(default_factory=dict[str, str])
    unexplained: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def add(self, native: str, key: str) -> None:
        """Notes that `key` is `native`; a second key for the same is a problem."""
        if native in self.names:
            self.problems.append(
                f"Two tensors for {native}: {self.names[native]} and {key}; expected one"
            )
        else:
            self.names[native] = key


def resampler_name(key: str, spec: TensorSpec) -> str | None:
    """The native name of a resampler parameter, None if it is none."""
    match = _RESAMPLER.fullmatch(key)
    if match is None:
        return None
    name = match["name"]
    dimensions = 3 if name == "latents" else 1 if _VECTOR.fullmatch(name) else 2
    return f"resampler.{name}" if len(spec.shape) == dimensions else None


def projection_of(key: str, spec: TensorSpec) -> str | None:
    """`to_k` or `to_v` where a key is a projection to keys or values, else None."""
    if len(spec.shape) != 2:
        return None
    for part in reversed(key.lower().split(".")):
        words = set(re.split("[_-]", part))
        is_key, is_value = bool(words & _KEY_WORDS), bool(words & _VALUE_WORDS)
        if is_key != is_value:
            return "to_k" if is_key else "to_v"
        if is_key:
            return None
    return None


def looks_like_encoder(tensors: Mapping[str, TensorSpec]) -> bool:
    """Whether a file without our metadata holds a resampler's inside and projections."""
    # Not proj_in, proj_out and norm_out: every UNet has those.
    inside = ("resampler.latents", "resampler.layers.")
    return any(
        (resampler_name(key, spec) or "").startswith(inside) for key, spec in tensors.items()
    ) and any(projection_of(key, spec) for key, spec in tensors.items())


def read_roles(tensors: Mapping[str, TensorSpec]) -> Reading:
    """The native name of every tensor that the rules explain."""
    reading = Reading()
    projections: dict[str, str] = {}
    for key, spec in tensors.items():
        native, projection = resampler_name(key, spec), projection_of(key, spec)
        if native is not None:
            reading.add(native, key)
        elif projection is not None:
            projections[key] = projection
        else:
            reading.unexplained.append(key)
    sites = _sites(reading, {key: tensors[key] for key in projections})
    for key, projection in projections.items():
        if key in sites:
            reading.add(f"sites.{sites[key].path}.{projection}.weight", key)
        else:
            reading.unexplained.append(key)
    return reading


def _sites(reading: Reading, tensors: Mapping[str, TensorSpec]) -> dict[str, AttentionSite]:
    """The site of each projection, as far as it can be told."""
    named = {key: place for key in tensors if (place := named_place(key)) is not None}
    if not named:
        return _numbered_sites(reading, tensors)
    diffusers = [place for place in named.values() if isinstance(place, DiffusersPlace)]
    layers = layers_per_block(diffusers)
    if layers is None:
        reading.problems.append(
            "The attentions in the names (down_blocks.B.attentions.A, ...) are not those of a UNet "
            "with equally many layers in each down block and one more in each up block"
        )
        return {}
    return {
        key: place.site(layers) if isinstance(place, DiffusersPlace) else place
        for key, place in named.items()
    }


def _numbered_sites(
    reading: Reading, tensors: Mapping[str, TensorSpec]
) -> dict[str, AttentionSite]:
    numbers = _numbers(tensors)
    if not numbers:
        reading.problems.append(
            "The places of the key and value projections cannot be told: expected block names, or "
            "exactly one number that differs from key to key"
        )
        return {}
    widths = {number: tensors[key].shape[0] for key, number in numbers.items()}
    known = list(known_numberings())
    fitting = [numbering for numbering in known if numbering.fits(widths)]
    if not fitting:
        reading.problems.append(_nearest(known, widths))
        return {}
    if len(fitting) > 1:
        ways = "; or as ".join(numbering.label for numbering in fitting)
        reading.problems.append(f"The numbered places can be read as {ways}")
        return {}
    reading.notes.append(f"The places are those of {fitting[0].label}; no other known way fits.")
    return {key: fitting[0].sites[number] for key, number in numbers.items()}


def _numbers(keys: Iterable[str]) -> dict[str, int]:
    """The number that tells each key's place; empty where it cannot be told which number does."""
    rows = {
        key: [int(word) for word in re.split("[._-]", key) if re.fullmatch("[0-9]{1,6}", word)]
        for key in keys
    }
    if len({len(row) for row in rows.values()}) != 1:
        return {}
    columns = list(zip(*rows.values(), strict=True))
    varying = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    return {key: row[varying[0]] for key, row in rows.items()} if len(varying) == 1 else {}


def _nearest(known: Iterable[Numbering], widths: Mapping[int, int]) -> str:
    """Why the numbers fit no known way, told by the way that shares most numbers with them."""
    best = max(known, key=lambda way: len(way.sites.keys() & widths.keys()) - len(way.sites) / 1000)
    missing = sorted(best.sites.keys() - widths.keys())
    surplus = sorted(widths.keys() - best.sites.keys())
    if not missing and not surplus:
        return (
            f"The places are numbered as {best.label}, but the widths are not those of its layers"
        )
    return (
        f"The {len(widths)} numbered places fit no known way of counting; nearest is {best.label}, "
        f"of which {missing or 'none'} are missing and {surplus or 'none'} are too many"
    )
