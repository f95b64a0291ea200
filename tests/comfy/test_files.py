"""Encoder and subject files through the nodes: bit-equal, re-read when replaced, listed at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import folder_paths
import pack
import pytest
import scenes
import torch

checkpoint = pack.module("nested_core.checkpoint")
errors = pack.module("nested_core.errors")


@pytest.fixture
def encoder_file(sdxl, request):
    folder = Path(folder_paths.get_folder_paths("nested_attention")[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{request.node.name}.safetensors"
    checkpoint.save_encoder(sdxl.encoder, path)
    return path


@pytest.mark.smoke
def test_an_encoder_is_the_same_after_save_and_load(sdxl, encoder_file):
    loaded = pack.run("LoadEncoder", encoder_name=encoder_file.name)
    expected, found = sdxl.encoder.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.config == sdxl.encoder.config
    assert loaded.name == encoder_file.name
    assert checkpoint.encoder_hash(loaded) == checkpoint.encoder_hash(sdxl.encoder)


def test_a_subject_is_the_same_after_save_and_load(sdxl, encoder_file):
    sdxl.encoder = pack.run("LoadEncoder", encoder_name=encoder_file.name)
    subject = sdxl.subject(references=2)
    shown = pack.node("SaveSubject").execute(subject=subject, filename_prefix="people/anna").ui
    (name,) = (n for n in folder_paths.get_filename_list("nested_subjects") if "anna" in n)
    assert name == os.path.join("people", "anna_00001_.safetensors")
    assert name in str(shown.as_dict() if hasattr(shown, "as_dict") else shown)
    loaded = pack.run("LoadSubject", subject_name=name, encoder=sdxl.encoder)
    assert torch.equal(loaded.tokens, subject.tokens)
    assert (loaded.references, loaded.noun) == (subject.references, subject.noun)
    assert loaded.thumbnail == subject.thumbnail != ""
    assert sdxl.bind(loaded).id == sdxl.bind(subject).id

    pictures = []
    for each in (subject, loaded):
        model, clip = sdxl.apply(sdxl.bind(each))
        positive, negative = sdxl.encode(clip, "<anna>"), sdxl.encode(clip, "")
        pictures.append(sdxl.sample(model, positive, negative))
    assert torch.equal(*pictures)


def test_saving_never_overwrites(sdxl):
    for _ in range(2):
        pack.run("SaveSubject", subject=sdxl.subject(), filename_prefix="twice")
    names = [n for n in folder_paths.get_filename_list("nested_subjects") if "twice" in n]
    assert names == ["twice_00001_.safetensors", "twice_00002_.safetensors"]


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("../../escaped", "points outside the folder of subjects"),
        ("people/NUL", "is a device on Windows"),
        ("x" * 300, "has a part of 300 bytes"),
        ("an\x00na", "which no name may hold"),
    ],
)
def test_a_name_that_cannot_be_is_explained(sdxl, prefix, message):
    with pytest.raises(
        errors.CheckpointError, match=f"^Save Subject: the filename_prefix .*{message}"
    ):
        pack.run("SaveSubject", subject=sdxl.subject(), filename_prefix=prefix)


def test_a_name_may_hold_the_date_as_comfyuis_own_names_do(sdxl):
    prefix = "on %year%-%month%-%day%/%width%"
    shown = pack.node("SaveSubject").execute(subject=sdxl.subject(), filename_prefix=prefix).ui
    name = os.path.join(time.strftime("on %Y-%m-%d"), "%width%_00001_.safetensors")
    assert name in str(shown.as_dict() if hasattr(shown, "as_dict") else shown)
    assert name in folder_paths.get_filename_list("nested_subjects")


def test_a_replaced_file_changes_the_fingerprint(sdxl, encoder_file):
    node = pack.node("LoadEncoder")
    before = node.fingerprint_inputs(encoder_name=encoder_file.name)
    assert before == node.fingerprint_inputs(encoder_name=encoder_file.name)
    checkpoint.save_encoder(scenes.make_encoder("sdxl", sdxl.model, seed=8), encoder_file)
    os.utime(encoder_file, ns=(1, 1))
    assert node.fingerprint_inputs(encoder_name=encoder_file.name) != before


def test_extra_folders_of_the_user_are_searched(sdxl, tmp_path, monkeypatch):
    folders, suffixes = folder_paths.folder_names_and_paths["nested_attention"]
    known = {"nested_attention": ([*folders], suffixes)}
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **known}
    )
    folder_paths.add_model_folder_path("nested_attention", str(tmp_path))
    checkpoint.save_encoder(sdxl.encoder, tmp_path / "elsewhere.safetensors")
    (tmp_path / "notes.txt").write_text("no encoder")
    names = folder_paths.get_filename_list("nested_attention")
    assert "elsewhere.safetensors" in names
    assert "notes.txt" not in names
    assert pack.run("LoadEncoder", encoder_name="elsewhere.safetensors").config.noun == "person"
