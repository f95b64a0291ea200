"""Files that want to cost more than they are worth."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

CONFIG: dict[str, Any] = {
    "noun": "person",
    "base": "sdxl",
    "image_encoder": {
        "kind": "clip_vision",
        "hidden_size": 8,
        "image_size": 224,
        "hidden_state": "penultimate",
    },
    "resampler": {
        "embedding_dim": 8,
        "dim": 8,
        "depth": 1,
        "dim_head": 8,
        "heads": 1,
        "num_queries": 2,
        "output_dim": 8,
        "ff_mult": 1,
    },
    "value_norm": {"mode": "per_head", "scale": 2.0},
}
LAYER = {
    "0.norm1.weight": [8],
    "0.norm1.bias": [8],
    "0.norm2.weight": [8],
    "0.norm2.bias": [8],
    "0.to_q.weight": [8, 8],
    "0.to_kv.weight": [16, 8],
    "0.to_out.weight": [8, 8],
    "1.0.weight": [8],
    "1.0.bias": [8],
    "1.1.weight": [8, 8],
    "1.3.weight": [8, 8],
}
RESAMPLER = {
    "resampler.latents": [1, 2, 8],
    "resampler.proj_in.weight": [8, 8],
    "resampler.proj_in.bias": [8],
    **{f"resampler.layers.0.{name}": shape for name, shape in LAYER.items()},
    "resampler.proj_out.weight": [8, 8],
    "resampler.proj_out.bias": [8],
    "resampler.norm_out.weight": [8],
    "resampler.norm_out.bias": [8],
}
SITE = {f"sites.middle.0.0.to_{part}.weight": [8, 8] for part in "kv"}
ENCODER = {**RESAMPLER, **SITE}
# The same in heads of 64, as the authors' make has it, and no metadata.
WIDE = {"0.to_q.weight": [64, 8], "0.to_kv.weight": [128, 8], "0.to_out.weight": [8, 64]}
OFFICIAL = {**ENCODER, **{f"resampler.layers.0.{name}": shape for name, shape in WIDE.items()}}
SUBJECT = {
    "noun": "person",
    "encoder_hash": "0" * 64,
    "references": [4],
    "thumbnail": "",
    "weights": [1],
}

Shapes = dict[str, list[int]]


def framed(header: bytes | str, data: bytes = b"") -> bytes:
    header = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + data


def entries(shapes: Shapes, dtype: str = "F32") -> tuple[dict[str, Any], bytes]:
    found: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, size = end, 4
        for each in shape:
            size *= each
        end = start + size
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return found, bytes(end)


def encoder(shapes: Shapes = ENCODER, config: Any = CONFIG, **metadata: Any) -> bytes:
    """A native file; `config` is text, or becomes it."""
    found, data = entries(shapes)
    text = config if isinstance(config, str) else json.dumps(config)
    told = {"format": "nested-attention-encoder", "format_version": "1", "config": text, **metadata}
    return framed(json.dumps({"__metadata__": told, **found}), data)


def subject(config: Any = SUBJECT, shape: tuple[int, ...] = (4, 8)) -> bytes:
    found, data = entries({"subject_tokens": list(shape)})
    text = config if isinstance(config, str) else json.dumps(config)
    told = {"format": "nested-attention-subject", "format_version": "1", "config": text}
    return framed(json.dumps({"__metadata__": told, **found}), data)


def official(shapes: Shapes = OFFICIAL) -> bytes:
    found, data = entries(shapes)
    return framed(json.dumps(found), data)


def one_tensor(shape: str, dtype: str = "F32", offsets: str = "[0,0]") -> bytes:
    return framed(f'{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}')


def changed(section: str, name: str, value: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], name: value}}


def layers(number: int, shapes: Shapes) -> Shapes:
    more = {
        f"resampler.layers.{n}.{name}": [0] * len(shape)
        for n in range(1, number)
        for name, shape in LAYER.items()
    }
    return {**shapes, **more}


def without_width(shapes: Shapes) -> Shapes:
    return {name: [0] * len(shape) for name, shape in shapes.items()}


def sites(number: int) -> Shapes:
    return {
        f"sites.output.{n // 1000}.{n % 1000}.to_{part}.weight": [1, 8]
        for n in range(number)
        for part in "kv"
    }


def empty_tensors(number: int) -> str:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return "{" + ",".join(f'"{n}":{entry}' for n in range(number)) + "}"


NESTED = "[" * 100_000 + "]" * 100_000
SIZES = [-1, 2**31, 2**63, 2**64, 10**39, 1e308, 1.5, True, None, "8", [], {}]

NAMED: dict[str, Callable[[], bytes]] = {
    "a shape of three million sizes": lambda: one_tensor(f"[{'1,' * 3_000_000}1]"),
    "a shape of three million large sizes": lambda: one_tensor(f"[{'99999,' * 2_500_000}1]"),
    "a shape of a hundred thousand zeros": lambda: one_tensor(f"[{'0,' * 100_000}0]"),
    "sizes of four thousand digits": lambda: one_tensor(f"[{('9' * 4000 + ',') * 8}1]"),
    "many sizes of thirty digits": lambda: one_tensor(f"[{('9' * 30 + ',') * 100_000}1]"),
    "eight sizes of thirty digits": lambda: one_tensor(str([10**30] * 8)),
    "sizes that overflow beside a zero": lambda: one_tensor(str([0, 2**62, 2**62])),
    "large sizes of an unknown type": lambda: one_tensor(str([2**62] * 4), "F4", "[0,0]"),
    "offsets beyond everything": lambda: one_tensor("[4]", offsets=f"[0,{10**30}]"),
    "offsets of a thousand digits": lambda: one_tensor("[4]", offsets=f"[0,{'9' * 1000}]"),
    "an exponent as an offset": lambda: one_tensor("[4]", offsets="[0,1e999999999]"),
    "not a number as a size": lambda: one_tensor("[NaN,Infinity,-Infinity]"),
    "millions of objects": lambda: framed('{"a":[' + "{}," * 5_000_000 + "{}]}"),
    "millions of texts": lambda: framed('{"a":[' + '"",' * 5_000_000 + '""]}'),
    "millions of numbers": lambda: framed('{"a":[' + "0," * 7_000_000 + "0]}"),
    "millions of quotes": lambda: framed("{" + '"' * 15_000_000),
    "millions of escapes": lambda: framed('{"' + '\\"' * 7_000_000),
    "millions of spaces": lambda: framed("{" + " " * 15_000_000 + "}"),
    "a header of twenty megabytes": lambda: framed("{" + " " * 20_000_000 + "}"),
    "a quarter of a million empty tensors": lambda: framed(empty_tensors(250_000)),
    "a deep header": lambda: framed('{"a":' + NESTED + "}"),
    "a deep entry": lambda: one_tensor(NESTED),
    "a deep configuration": lambda: encoder(config=NESTED),
    "a deep entry of the configuration": lambda: encoder(
        config=json.dumps(CONFIG)[:-1] + ', "a": ' + NESTED + "}"
    ),
    "a deep configuration of a subject": lambda: subject(config='{"a":' * 50_000),
    "a wide configuration": lambda: encoder(config=json.dumps({**CONFIG, "a": [0] * 300_000})),
    "a long configuration": lambda: encoder(config=json.dumps({**CONFIG, "a": "x" * 10_000_000})),
    "a long noun": lambda: encoder(config={**CONFIG, "noun": "x" * 900_000}),
    "a long number in the configuration": lambda: encoder(
        config=json.dumps(CONFIG).replace("2.0", "9" * 4000)
    ),
    "a long text in the metadata": lambda: encoder(more="x" * 15_000_000),
    "many texts in the metadata": lambda: encoder(**{f"k{n}": "" for n in range(20_000)}),
    "a long version": lambda: encoder(format_version="1" * 1_000_000),
    "a long format": lambda: encoder(format="x" * 1_000_000),
    "metadata twice": lambda: framed('{"__metadata__":{},"__metadata__":{}}'),
    "a name twice": lambda: framed('{"a":1,"\\u0061":2}'),
    "a list for a header": lambda: framed("[]"),
    "half a surrogate pair in a name": lambda: framed('{"\\ud800":{}}'),
    "half a surrogate pair in bytes": lambda: framed('{"\ud800":{}}'),
    "half a surrogate pair in a noun": lambda: encoder(
        config=json.dumps(CONFIG).replace("person", "\\udfff")
    ),
    "nothing in a name": lambda: official({**OFFICIAL, "": [1], "\0": [1]}),
    "a name of a million letters": lambda: official({**OFFICIAL, "x" * 1_000_000: [1]}),
    "names of dots": lambda: official({**OFFICIAL, **{"." * n: [1] for n in range(1, 500)}}),
    "names of layers": lambda: official(
        {**OFFICIAL, "layers.0." * 55: [1], "layers.0.0.norm" * 33: [1, 1]}
    ),
    "names of keys": lambda: official({**OFFICIAL, "to_k_" * 99: [1, 1], "0_" * 249 + "k": [1, 1]}),
    "a depth of 20,000": lambda: encoder(config=changed("resampler", "depth", 20_000)),
    "a depth of 20,000 beside empty tensors": lambda: encoder(
        {**ENCODER, **{f"{n}": [0] for n in range(21_000)}}, changed("resampler", "depth", 20_000)
    ),
    "300 empty layers": lambda: encoder(layers(300, ENCODER), changed("resampler", "depth", 300)),
    "300 empty layers of another make": lambda: official(layers(300, OFFICIAL)),
    "a layer of a high number": lambda: official(
        {**OFFICIAL, "resampler.layers.19999.0.to_q.weight": [0, 0]}
    ),
    "2,000 sites": lambda: encoder({**RESAMPLER, **sites(2000)}),
    "2,000 sites of another make": lambda: official({**OFFICIAL, **sites(2000)}),
    "a site without width": lambda: encoder({**RESAMPLER, **without_width(SITE)}),
    "a resampler without width": lambda: official(
        {name: [0] * len(shape) for name, shape in OFFICIAL.items()}
    ),
    "references without number": lambda: subject(
        {**SUBJECT, "references": [1] * 9000, "weights": [1] * 9000}
    ),
    "references of thirty digits": lambda: subject({**SUBJECT, "references": [10**30] * 4000}),
    "a subject without width": lambda: subject(shape=(4, 0)),
    "a subject of many dimensions": lambda: subject(shape=(4,) + (1,) * 1000),
    **{
        f"{section}.{name} = {value!r:.20}": (
            lambda section=section, name=name, value=value: encoder(
                config=changed(section, name, value)
            )
        )
        for section in ("image_encoder", "resampler", "value_norm")
        for name in CONFIG[section]
        for value in (*SIZES, float("nan"), float("inf"), 0, -0.0, 65_536)
    },
}


def randomly_changed(seed: int) -> bytes:
    """One of the good files with a few places of its header or configuration replaced."""
    dice = random.Random(seed)
    content = dice.choice([encoder, official, subject])()
    length = int.from_bytes(content[:8], "little")
    header: Any = json.loads(content[8 : 8 + length])
    config: Any = json.loads(header.get("__metadata__", {}).get("config", "{}"))
    for _ in range(dice.randint(1, 3)):
        holder: Any = dice.choice([header, config])
        while True:
            place = dice.choice(
                [*range(len(holder))] if isinstance(holder, list) else [*holder, "a"]
            )
            inner = holder[place] if isinstance(holder, list) else holder.get(place)
            if not isinstance(inner, (dict, list)) or not inner or dice.random() < 0.2:
                break
            holder = inner
        holder[place] = dice.choice(
            [*SIZES, 0, 1, 7, 2**20, "x" * 5000, [0] * 9, float("nan"), {"a": 1}]
        )
    if isinstance(header.get("__metadata__"), dict) and config:
        header["__metadata__"]["config"] = json.dumps(config)
    data = content[8 + length :]
    cut = dice.choice([len(data), len(data), len(data), dice.randint(0, len(data))])
    return framed(json.dumps(header), data[:cut])


def files(num_random: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "a good encoder", encoder
    yield "a good encoder of another make", official
    yield "a good subject", subject
    yield from NAMED.items()
    for seed in range(num_random):
        yield f"random {seed}", lambda seed=seed: randomly_changed(seed)
