from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from safetensors import safe_open
from safetensors.torch import save_file
from tensors import tensors_of

from nested_core.checkpoint import (
    detect,
    encoder_hash,
    load_encoder,
    load_subject,
    save_encoder,
    save_subject,
)
from nested_core.errors import CheckpointError
from nested_core.subject import make_thumbnail


@pytest.fixture
def saved(tmp_path: Path, make_subject: Any) -> Path:
    path = tmp_path / "anna.safetensors"
    save_subject(make_subject(references=(4, 4)), path)
    return path


def rewrite(path: Path, tensors: Any = None, **changes: Any) -> None:
    """The file with other tensors or entries of its config; an entry of None is left out."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    config = {**json.loads(metadata["config"]), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    tensors = tensors_of(path) if tensors is None else tensors
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})


def test_a_subject_comes_back_bit_for_bit(tmp_path: Path, make_subject: Any):
    picture = torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0))
    subject = make_subject(references=(4, 8))
    subject = replace(subject, noun="grey cat", thumbnail=make_thumbnail(picture))
    save_subject(subject, tmp_path / "cat.safetensors")
    loaded = load_subject(tmp_path / "cat.safetensors", subject.encoder)
    assert torch.equal(loaded.tokens, subject.tokens)
    assert loaded.tokens.dtype == torch.float32
    assert loaded.references == (4, 8)
    assert loaded.noun == "grey cat"
    assert loaded.thumbnail == subject.thumbnail
    assert loaded.encoder is subject.encoder
    assert loaded.digest == subject.digest


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20),
)
def test_any_noun_and_references_come_back(
    tmp_path_factory: Any, make_subject: Any, references: list[int], noun: str
):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    subject = replace(make_subject(references=tuple(references)), noun=noun)
    save_subject(subject, path)
    loaded = load_subject(path, subject.encoder)
    assert (loaded.noun, loaded.references) == (noun, tuple(references))
    assert torch.equal(loaded.tokens, subject.tokens)


def test_the_file_is_the_documented_format(saved: Path, make_encoder: Any):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
        assert list(file.keys()) == ["subject_tokens"]
    assert metadata.keys() == {"format", "format_version", "config"}
    assert metadata["format"] == "nested-attention-subject"
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["config"]) == {
        "noun": "person",
        "encoder_hash": encoder_hash(make_encoder()),
        "references": [4, 4],
        "thumbnail": "",
    }
    assert tensors_of(saved)["subject_tokens"].shape == (8, 24)


def test_weights_come_back_bit_for_bit(tmp_path: Path, make_subject: Any):
    weights = (0.1, 1.0, 1 / 3, 1e-6)
    subject = replace(make_subject(references=(4, 2, 1, 3)), weights=weights)
    save_subject(subject, tmp_path / "weighted.safetensors")
    loaded = load_subject(tmp_path / "weighted.safetensors", subject.encoder)
    assert loaded.weights == weights
    assert loaded.digest == subject.digest
    with safe_open(tmp_path / "weighted.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["config"])["weights"] == list(weights)


def test_a_file_without_weights_has_equal_ones(saved: Path, make_encoder: Any):
    assert load_subject(saved, make_encoder()).weights == ()
    rewrite(saved, weights=[0.5, 0.5])
    assert load_subject(saved, make_encoder()).weights == ()


def test_a_files_weights_are_read_relative_to_the_greatest(saved: Path, make_encoder: Any):
    rewrite(saved, weights=[0.25, 0.5])
    assert load_subject(saved, make_encoder()).weights == (0.5, 1.0)


@pytest.mark.parametrize(
    "weights",
    [
        "null",
        "3",
        '"1, 0.5"',
        '{"0": 1, "1": 1}',
        "[]",
        "[1]",
        "[1, 1, 1]",
        '[1, "0.5"]',
        "[\"__import__('os')\", 1]",
        "[true, 1]",
        "[1, null]",
        "[1, [1]]",
        "[1, 0]",
        "[1, -0.5]",
        "[1, 1e-7]",
        "[1, 1.5]",
        "[1, NaN]",
        "[1, Infinity]",
        "[1, 1" + "0" * 30 + "]",
        "[1, -0]",
        "[1, 1e308]",
    ],
)
def test_wrong_weights_are_named(saved: Path, make_encoder: Any, weights: str):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    config = metadata["config"].removesuffix("}") + f', "weights": {weights}}}'
    save_file(tensors_of(saved), saved, {**metadata, "config": config})
    with pytest.raises(
        CheckpointError,
        match=r"^anna\.safetensors: config\.weights is .*, expected 2 number\(s\) from 1e-06 to 1, "
        r"one for each of config\.references\. The file is damaged",
    ):
        load_subject(saved, make_encoder())


def test_a_subject_file_is_told_by_its_metadata(saved: Path):
    assert detect(saved) == "subject"


def test_an_encoder_file_and_the_encoder_it_came_from_read_the_same_subjects(
    tmp_path: Path, saved: Path, make_encoder: Any
):
    save_encoder(make_encoder(), tmp_path / "face.safetensors")
    loaded = load_subject(saved, load_encoder(tmp_path / "face.safetensors"))
    assert loaded.encoder.name == "face.safetensors"


def test_a_subject_of_another_encoder_is_refused_with_both_hashes(saved: Path, make_encoder: Any):
    made_with, other = encoder_hash(make_encoder())[:12], make_encoder(seed=1)
    with pytest.raises(
        CheckpointError,
        match=rf"^anna\.safetensors: was made with the encoder {made_with}, but 'tiny' is "
        rf"{encoder_hash(other)[:12]}\. Load the encoder it was made with, or encode",
    ):
        load_subject(saved, other)


def test_other_kinds_of_files_say_which_loader_takes_them(
    tmp_path: Path, saved: Path, make_encoder: Any
):
    save_encoder(make_encoder(), tmp_path / "face.safetensors")
    with pytest.raises(
        CheckpointError, match=r"expected a subject file, found an encoder .* Load Encoder\."
    ):
        load_subject(tmp_path / "face.safetensors", make_encoder())
    with pytest.raises(
        CheckpointError, match=r"expected an encoder file, found a subject .* Load Subject\."
    ):
        load_encoder(saved)


def test_a_lora_is_neither(tmp_path: Path, make_encoder: Any):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_te_up.weight": torch.zeros(2, 2)}, path, {"ss_network_module": "lora"})
    message = "found 1 tensors: lora_te_up.weight. Its metadata has the format ''"
    for read in (load_encoder, lambda path: load_subject(path, make_encoder())):
        with pytest.raises(CheckpointError, match=message):
            read(path)


def test_a_newer_version_says_to_update(saved: Path, make_encoder: Any):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    save_file(tensors_of(saved), saved, {**metadata, "format_version": "2"})
    with pytest.raises(CheckpointError, match="format version '2', expected '1'"):
        load_subject(saved, make_encoder())


def picture(size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(buffer, **{"format": "JPEG", **options})
    return buffer.getvalue()


def padded(num_bytes: int) -> bytes:
    """A small JPEG made longer by comments, which decoders pass over."""
    content, rest = picture(), num_bytes - len(picture())
    while rest:
        length = min(rest, 60_000) if rest - 60_000 > 4 or rest <= 60_000 else rest - 4
        comment = b"\xff\xfe" + (length - 2).to_bytes(2, "big") + bytes(length - 4)
        content, rest = content[:2] + comment + content[2:], rest - length
    return content


def claiming(width: int, height: int) -> bytes:
    """A JPEG whose header tells another size."""
    content = picture()
    frame = content.index(b"\xff\xc0") + 5
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return content[:frame] + size + content[frame + 4 :]


def without_tables() -> bytes:
    """A JPEG of which only a decoder can tell that it cannot be decoded."""
    content = picture()
    while (table := content.find(b"\xff\xdb")) >= 0:
        length = int.from_bytes(content[table + 2 : table + 4], "big")
        content = content[:table] + content[table + 2 + length :]
    return content


def with_scans(number: int) -> bytes:
    """A progressive JPEG that has its last scan many times more."""
    content = picture(progressive=True)
    scan = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + scan * number + content[-2:]


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noun": 3}, r"config\.noun is '3', expected text"),
        ({"noun": " "}, r"config\.noun is ' ', expected text"),
        ({"noun": None}, r"config\.noun is 'None', expected text"),
        ({"encoder_hash": None}, r"config\.encoder_hash is 'None', expected text"),
        (
            {"references": None},
            r"config\.references is None, expected the number of tokens",
        ),
        ({"references": []}, r"config\.references is \[\], expected the number"),
        ({"references": 8}, r"config\.references is 8, expected the number"),
        ({"references": [8, 0]}, r"config\.references is \[8, 0\], expected the number"),
        ({"references": [True, 7]}, r"config\.references is \[True, 7\], expected the number"),
        ({"references": [4.0, 4.0]}, r"config\.references is \[4\.0, 4\.0\], expected the number"),
        ({"references": [4, 5]}, r"references have 9 tokens in all, but 'subject_tokens' has 8"),
        ({"thumbnail": None}, r"config\.thumbnail is None, expected base64 of a JPEG"),
        ({"thumbnail": 7}, r"config\.thumbnail is 7, expected base64 of a JPEG"),
        (
            {"thumbnail": base64_of(padded(150_001))},
            r"text of 200,004 characters, expected .* most 200,000",
        ),
        ({"thumbnail": "<script>"}, r"config\.thumbnail is not base64 of a JPEG"),
        ({"thumbnail": "not base64!"}, r"config\.thumbnail is not base64 of a JPEG"),
        ({"thumbnail": "é"}, r"config\.thumbnail is not base64 of a JPEG"),
        ({"thumbnail": base64_of(b"<svg/>")}, r"is not base64 of a JPEG that can be decoded"),
        (
            {"thumbnail": base64_of(b"\xff\xd8" + bytes(100))},
            r"JPEG that can be decoded \(SyntaxErr",
        ),
        (
            {"thumbnail": base64_of(picture(format="PNG"))},
            r"JPEG that can be decoded \(SyntaxError",
        ),
        (
            {"thumbnail": base64_of(picture(format="GIF"))},
            r"JPEG that can be decoded \(SyntaxError",
        ),
        (
            {"thumbnail": base64_of(picture((64, 64))[:-20])},
            r"a JPEG that (can be decod|is cut off)",
        ),
        (
            {"thumbnail": base64_of(picture((64, 64))[:-2])},
            r"a JPEG that (can be decod|is cut off)",
        ),
        (
            {"thumbnail": base64_of(picture((513, 8)))},
            "513 x 8 pixels, expected at most 512 a side",
        ),
        (
            {"thumbnail": base64_of(claiming(65_000, 65_000))},
            "65000 x 65000 pixels, expected at mo",
        ),
        ({"thumbnail": base64_of(claiming(0, 8))}, "JPEG"),
        ({"thumbnail": base64_of(without_tables())}, r"JPEG that can be decoded \(\w+Error\)"),
        ({"thumbnail": base64_of(with_scans(1000))}, "JPEG of more than 16 scans, expected an ord"),
        ({"encoder_hash": "g" * 64}, r"encoder_hash is 'g+', expected 64 hexadecimal digits"),
        (
            {"encoder_hash": "0" * 1000},
            r"encoder_hash is '0+... \(1,000 characters\)', expected 64",
        ),
        ({"noun": "wo\u202eman"}, r"config\.noun, '.*', has an invisible character \(U\+202E\)"),
        ({"noun": "\x1b[2J"}, r"config\.noun, '.x1b\[2J', has a control character"),
        ({"noun": "x" * 201}, r"config\.noun, .*, has 201 characters, expected at most 200"),
        ({"references": [10**30]}, r"references have 1000\d+ tokens in all, but"),
        ({"references": [1] * 20_000}, r"'config' is not JSON \(more than 10,000 values\)"),
    ],
)
def test_wrong_entries_are_named(
    saved: Path, make_encoder: Any, changes: dict[str, Any], message: str
):
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=rf"^anna\.safetensors: .*{message}"):
        load_subject(saved, make_encoder())


def test_the_largest_thumbnail_is_accepted(saved: Path, make_encoder: Any):
    rewrite(saved, thumbnail=base64_of(padded(150_000)))
    assert len(load_subject(saved, make_encoder()).thumbnail) == 200_000


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100}])
@pytest.mark.parametrize("size", [(1, 1), (128, 96), (512, 512)])
def test_ordinary_thumbnails_are_accepted(
    saved: Path, make_encoder: Any, size: tuple[int, int], options: dict[str, Any]
):
    rewrite(saved, thumbnail=base64_of(picture(size, **options)))
    assert load_subject(saved, make_encoder()).thumbnail


def test_a_thumbnail_that_is_cut_off_is_refused_whatever_pillow_was_told(
    saved: Path, make_encoder: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    rewrite(saved, thumbnail=base64_of(picture((64, 64))[:-20]))
    with pytest.raises(CheckpointError, match="JPEG that is cut off"):
        load_subject(saved, make_encoder())


@pytest.mark.parametrize("config", ["", "{", "[]", "3", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(saved: Path, make_encoder: Any, config: str):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    save_file(tensors_of(saved), saved, {**metadata, "config": config})
    with pytest.raises(CheckpointError, match=r"'config' is (not JSON|\[\]|3)"):
        load_subject(saved, make_encoder())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"tokens": torch.zeros(8, 24)}, "holds tokens, expected exactly 'subject_tokens'"),
        (
            {"subject_tokens": torch.zeros(8, 24), "more": torch.zeros(1)},
            "holds more, subject_tokens, expected exactly 'subject_tokens'",
        ),
        ({"subject_tokens": torch.zeros(8, 24).half()}, r"is F16 \[8, 24\], expected F32"),
        ({"subject_tokens": torch.zeros(1, 8, 24)}, r"is F32 \[1, 8, 24\], expected F32 \[tokens"),
        ({"subject_tokens": torch.zeros(8, 25)}, "the width 25, but those of 'tiny' have 24"),
        ({"subject_tokens": torch.full((8, 24), torch.nan)}, "NaN or infinite values: subject_tok"),
        ({"subject_tokens": torch.full((8, 24), torch.inf)}, "NaN or infinite values: subject_tok"),
    ],
)
def test_wrong_tokens_are_refused(saved: Path, make_encoder: Any, tensors: Any, message: str):
    rewrite(saved, tensors)
    with pytest.raises(CheckpointError, match=rf"^anna\.safetensors: .*{message}"):
        load_subject(saved, make_encoder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": (3,)}, "references have 3 tokens in all, but 'subject_tokens' has 8"),
        ({"tokens": torch.full((8, 24), torch.nan)}, "NaN or infinite values: subject_tokens"),
        ({"thumbnail": "x" * 200_001}, "thumbnail is text of 200,001 characters"),
        ({"thumbnail": base64_of(picture(format="PNG"))}, "thumbnail is not base64 of a JPEG"),
        ({"noun": "wo\nman"}, "noun, 'wo.nman', has a control character"),
        ({"noun": ""}, "config.noun is '', expected text"),
        ({"weights": (1.0,)}, r"config.weights is \[1.0\], expected 2 number"),
    ],
)
def test_a_subject_that_could_not_be_loaded_never_replaces_a_good_file(
    saved: Path, make_subject: Any, changes: dict[str, Any], message: str
):
    before = saved.read_bytes()
    subject = replace(make_subject(references=(4, 4)), **changes)
    with pytest.raises(CheckpointError, match=message):
        save_subject(subject, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["anna.safetensors"]
