"""Encoder and subject files through the nodes: bit-equal, re-read when replaced, listed at once."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path

import folder_paths
import pack
import pytest
import scenes
import torch
from safetensors.torch import save_file

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


def test_what_the_file_cannot_tell_is_chosen_at_the_node(sdxl, encoder_file):
    plain = pack.run("LoadEncoder", encoder_name=encoder_file.name)
    defaults = {
        "hidden_state": "from file",
        "value_norm_mode": "from file",
        "value_norm_scale": 0.0,
        "noun": "",
        "dim_head": 0,
    }
    same = pack.run("LoadEncoder", encoder_name=encoder_file.name, **defaults)
    assert checkpoint.encoder_hash(same) == checkpoint.encoder_hash(plain)
    resampler = plain.config.resampler
    chosen = pack.run(
        "LoadEncoder",
        encoder_name=encoder_file.name,
        hidden_state="last",
        value_norm_mode="all_heads",
        value_norm_scale=1.5,
        noun=" from file ",
        dim_head=resampler.dim_head // 2,
    )
    assert chosen.config.image_encoder.hidden_state == "last"
    assert vars(chosen.config.value_norm) == {"mode": "all_heads", "scale": 1.5}
    assert chosen.config.noun == "from file"
    assert chosen.config.resampler.heads == 2 * resampler.heads
    sdxl.encoder = chosen
    subject = sdxl.subject()
    pack.run("SaveSubject", subject=subject, filename_prefix="chosen")
    (name,) = (n for n in folder_paths.get_filename_list("nested_subjects") if "chosen" in n)
    pack.run("LoadSubject", subject_name=name, encoder=chosen)
    with pytest.raises(Exception, match="was made with the encoder"):
        pack.run("LoadSubject", subject_name=name, encoder=plain)


def test_the_schemas_defaults_are_those_of_a_call_with_keywords_alone():
    node = pack.node("LoadEncoder")
    schema = {each.id: each for each in node.define_schema().inputs}
    parameters = inspect.signature(node.execute).parameters
    assert list(schema) == list(parameters)
    for name, parameter in parameters.items():
        if name != "encoder_name":
            assert schema[name].optional
            assert schema[name].default == parameter.default


def test_the_base_models_own_names_are_set_aside(sdxl):
    """ComfyUI's UNet beside the trained projections, as a whole training state may hold it."""
    aside = pack.module("nested_core.checkpoint.aside")
    keys = {f"model.diffusion_model.{key}" for key in sdxl.model.model.diffusion_model.state_dict()}
    nested = {
        f"{key[: -len('to_k.weight')]}processor.to_k_ip.weight" for key in keys if "2.to_k" in key
    }
    (group,) = aside.frozen_parts([*keys, *nested])
    assert (group.label, group.prefix) == ("UNet, ComfyUI's names", "model.diffusion_model.")
    assert set(group.keys) == keys


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


def test_a_shard_stands_for_all_and_any_replaced_one_changes_the_fingerprint(sdxl, encoder_file):
    tensors, name = sdxl.encoder.state_dict(), encoder_file.name
    metadata = {
        "format": "nested-attention-encoder",
        "format_version": "1",
        "config": sdxl.encoder.config.to_json(),
    }
    shards = [encoder_file.with_name(f"parts-0000{n}-of-00002.safetensors") for n in (1, 2)]
    for number, shard in enumerate(shards):
        part = {key: tensors[key] for key in list(tensors)[number::2]}
        save_file(part, shard, metadata)
    node = pack.node("LoadEncoder")
    assert shards[0].name in folder_paths.get_filename_list("nested_attention")
    loaded = pack.run("LoadEncoder", encoder_name=shards[0].name)
    assert checkpoint.encoder_hash(loaded) == checkpoint.encoder_hash(sdxl.encoder)
    before = node.fingerprint_inputs(encoder_name=shards[0].name)
    os.utime(shards[1], ns=(1, 1))
    after = node.fingerprint_inputs(encoder_name=shards[0].name, noun="dog")
    shards[1].unlink()
    missing = node.fingerprint_inputs(encoder_name=shards[0].name)
    assert len({before, after, missing}) == 3
    with pytest.raises(Exception, match=rf"'{shards[1].name}' is missing"):
        pack.run("LoadEncoder", encoder_name=shards[0].name)
    assert node.fingerprint_inputs(encoder_name=name) != node.fingerprint_inputs(
        encoder_name=shards[0].name
    )
    shards[0].unlink()


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
