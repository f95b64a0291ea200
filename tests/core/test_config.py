from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nested_core.config import EncoderConfig
from nested_core.errors import CheckpointError


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


@given(st.text(min_size=1).filter(str.strip), st.floats(0.01, 100), st.integers(1, 5000))
def test_any_configuration_survives_json(noun: str, scale: float, queries: int):
    config = read(_PLAIN)
    config = replace(
        config,
        noun=noun,
        value_norm=replace(config.value_norm, scale=scale),
        resampler=replace(config.resampler, num_queries=queries),
    )
    assert EncoderConfig.from_json(config.to_json(), "x") == config


@pytest.mark.parametrize("text", ["", "{", "noun: person", "\x00", "[" * 100_000])
def test_text_that_is_no_json_is_refused(text: str):
    with pytest.raises(CheckpointError, match=r"face\.safetensors: .*'config' is not JSON"):
        EncoderConfig.from_json(text, where="face.safetensors")


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
        ("value_norm.scale", 10**400, "value_norm.scale is inf, expected a number above 0"),
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
