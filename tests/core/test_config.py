from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core.config import EncoderConfig
from nested_core.encoder import Encoder
from nested_core.errors import CheckpointError
from nested_core.families.unet_sites import AttentionSite


def read(data: Any) -> EncoderConfig:
    return EncoderConfig.from_json(json.dumps(data), where="face.safetensors")


def changed(config: EncoderConfig, path: str, value: Any) -> Any:
    """The configuration's JSON object with one entry replaced."""
    data = asdict(config)
    *outer, last = path.split(".")
    section = data
    for key in outer:
        section = section[key]
    section[last] = value
    return data


def test_a_configuration_is_read_back_from_its_json(encoder_config: EncoderConfig):
    assert EncoderConfig.from_json(encoder_config.to_json(), "x") == encoder_config


def test_canonical_json_has_sorted_keys_and_no_spaces(encoder_config: EncoderConfig):
    assert encoder_config.to_json() == (
        '{"base":"sdxl","image_encoder":{"hidden_size":16,"hidden_state":"penultimate",'
        '"image_size":224,"kind":"clip_vision"},"noun":"person","resampler":{"depth":2,"dim":16,'
        '"dim_head":8,"embedding_dim":16,"ff_mult":4,"heads":2,"num_queries":4,"output_dim":24},'
        '"value_norm":{"mode":"per_head","scale":2.0}}'
    )


def test_equal_configurations_give_equal_json_whatever_the_order(encoder_config: EncoderConfig):
    backwards = dict(reversed(asdict(encoder_config).items()))
    assert read(backwards).to_json() == encoder_config.to_json()


def test_a_whole_number_is_taken_for_a_scale(encoder_config: EncoderConfig):
    config = read(changed(encoder_config, "value_norm.scale", 2))
    assert config == encoder_config
    assert config.to_json() == encoder_config.to_json()


def test_unknown_entries_are_left_aside(encoder_config: EncoderConfig):
    assert read(asdict(encoder_config) | {"comment": "made on a Monday"}) == encoder_config


WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


@given(WORDS, st.floats(0.01, 100), st.integers(1, 5000))
def test_any_configuration_survives_json(noun: str, scale: float, queries: int):
    config = read(_PLAIN)
    config = replace(
        config,
        noun=noun,
        value_norm=replace(config.value_norm, scale=scale),
        resampler=replace(config.resampler, num_queries=queries),
    )
    assert EncoderConfig.from_json(config.to_json(), "x") == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "noun: person",
        "\x00",
        "[" * 100_000,
        '{"noun": "x", "noun": "y"}',
        '{"noun": "\\ud800"}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": [' + "0," * 20_000 + "0]}",
        '{"a": "' + "x" * 2**20 + '"}',
        '{"a": ' * 40 + "0" + "}" * 40,
    ],
)
def test_text_that_is_no_json_is_refused(text: str):
    with pytest.raises(
        CheckpointError, match=r"face\.safetensors: .*'config' is not JSON"
    ) as error:
        EncoderConfig.from_json(text, where="face.safetensors")
    assert len(str(error.value).encode()) < 500


@pytest.mark.parametrize("data", [None, 3, [], "person"])
def test_json_that_is_no_object_is_refused(data: Any):
    with pytest.raises(CheckpointError, match=r"config is .*, expected an object"):
        read(data)


@pytest.mark.parametrize(
    "path",
    [
        "noun",
        "base",
        "image_encoder",
        "image_encoder.hidden_size",
        "resampler",
        "resampler.depth",
        "value_norm.mode",
    ],
)
def test_a_missing_entry_is_named_together_with_what_is_there(
    encoder_config: EncoderConfig, path: str
):
    data = asdict(encoder_config)
    *outer, last = path.split(".")
    section = data[outer[0]] if outer else data
    del section[last]
    place = ".".join(["config", *outer])
    with pytest.raises(CheckpointError, match=rf"{place} has no '{last}' \(it has \w+"):
        read(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("noun", 3, "config.noun is 3, expected text"),
        ("noun", " ", "config.noun is empty, expected a word"),
        ("base", None, "config.base is null, expected text"),
        ("resampler", [], r"config.resampler is \[\], expected an object"),
        ("resampler.dim", "16", 'resampler.dim is "16", expected a whole number'),
        ("resampler.dim", 16.0, "resampler.dim is 16.0, expected a whole number"),
        ("resampler.depth", True, "resampler.depth is true, expected a whole number"),
        ("resampler.depth", 0, "resampler.depth is 0, expected a number above 0"),
        ("resampler.heads", -2, "resampler.heads is -2, expected a number above 0"),
        ("value_norm.scale", "2", 'value_norm.scale is "2", expected a number'),
        ("value_norm.scale", 0.0, "value_norm.scale is 0.0, expected a number above 0"),
        (
            "value_norm.scale",
            10**400,
            r"'config' is not JSON \(a number of more than 40 characters",
        ),
        ("value_norm.scale", 1e308, r"value_norm.scale is 1e\+308, expected at most 100"),
        ("value_norm.scale", 10**39, r"value_norm.scale is 1e\+39, expected at most 100"),
        (
            "value_norm.scale",
            100.1,
            r"scale is 100.1, expected at most 100.0 \(from 0.001 to 100.0\)",
        ),
        ("value_norm.scale", 1e-300, "value_norm.scale is 1e-300, expected at least 0.001"),
        ("value_norm.scale", -0.0, "value_norm.scale is -0.0, expected a number above 0"),
        ("value_norm.scale", True, "value_norm.scale is true, expected a number"),
        ("image_encoder.image_size", 2049, "image_size is 2049, expected at most 2048"),
        ("image_encoder.hidden_size", 10**9, "hidden_size is 1000000000 but"),
        ("resampler.output_dim", 16385, "output_dim is 16385, expected at most 16384"),
        ("resampler.dim", 2**64, "resampler.dim is 18446744073709551616, expected at most 16384"),
        ("resampler.depth", 65, "resampler.depth is 65, expected at most 64"),
        ("resampler.dim_head", 1025, "dim_head is 1025, expected at most 1024"),
        ("resampler.heads", 257, "heads is 257, expected at most 256"),
        ("resampler.num_queries", 16385, "num_queries is 16385, expected at most 16384"),
        ("resampler.ff_mult", 65, "ff_mult is 65, expected at most 64"),
        ("noun", "wo\nman", r"config.noun, 'wo\\nman', has a control character or line break"),
        ("noun", "\u200b", "config.noun, '\u200b', has nothing that can be seen"),
        ("base", "\u202elxds", "config.base, .* has an invisible character"),
        (
            "noun",
            "x" * 201,
            "config.noun, 'x+... .201 characters.', has 201 characters, expected at",
        ),
        ("value_norm.scale", float("nan"), "value_norm.scale is nan, expected a number above 0"),
        ("value_norm.scale", float("inf"), "value_norm.scale is inf, expected a number above 0"),
        ("value_norm.mode", "per_layer", '"per_layer", expected one of per_head, all_heads, none'),
        ("value_norm.mode", ["none"], r'mode is \["none"\], expected one of per_head'),
        ("image_encoder.kind", "dino", '"dino", expected one of clip_vision'),
        ("image_encoder.hidden_state", "first", '"first", expected one of penultimate, last'),
        ("image_encoder.hidden_size", 32, "hidden_size is 32 but .* embedding_dim is 16"),
    ],
)
def test_a_wrong_entry_is_named_with_what_was_expected(
    encoder_config: EncoderConfig, path: str, value: Any, message: str
):
    with pytest.raises(CheckpointError, match=rf"^face\.safetensors: .*{message}"):
        read(changed(encoder_config, path, value))


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("resampler", {"depth": 20_000}),
        ("resampler", {"num_queries": 0}),
        ("image_encoder", {"image_size": 10**9}),
        ("value_norm", {"scale": 1e308}),
        ("value_norm", {"scale": float("nan")}),
    ],
)
def test_no_encoder_is_built_beyond_the_ranges_wherever_its_sizes_come_from(
    encoder_config: EncoderConfig, few_site_dims: Any, section: str, change: Any
):
    config = replace(
        encoder_config, **{section: replace(getattr(encoder_config, section), **change)}
    )
    ((name, _),) = change.items()
    with pytest.raises(
        CheckpointError, match=rf"^face: config\.{section}\.{name} is .*, expected at"
    ):
        Encoder(config, few_site_dims, name="face")


def test_no_encoder_has_thousands_of_sites(encoder_config: EncoderConfig):
    dims = {AttentionSite("output", 0, index): 8 for index in range(1025)}
    with pytest.raises(
        CheckpointError, match="face: holds 1,025 attention sites, expected at most 1,024"
    ):
        Encoder(encoder_config, dims, name="face")


_PLAIN = {
    "noun": "person",
    "base": "sdxl",
    "image_encoder": {
        "kind": "clip_vision",
        "hidden_size": 1280,
        "image_size": 224,
        "hidden_state": "penultimate",
    },
    "resampler": {
        "embedding_dim": 1280,
        "dim": 1280,
        "depth": 4,
        "dim_head": 64,
        "heads": 20,
        "num_queries": 1024,
        "output_dim": 2048,
        "ff_mult": 4,
    },
    "value_norm": {"mode": "per_head", "scale": 2.0},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(
    st.sampled_from([*_PLAIN, *(f"resampler.{key}" for key in _PLAIN["resampler"])]), json_values
)
def test_any_value_in_any_place_is_a_configuration_or_a_checkpoint_error(path: str, value: Any):
    try:
        config = read(changed(EncoderConfig.from_json(json.dumps(_PLAIN), "x"), path, value))
    except CheckpointError:
        return
    assert EncoderConfig.from_json(config.to_json(), "x") == config
