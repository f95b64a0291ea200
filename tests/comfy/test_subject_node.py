"""Subject from Photo: load, encode and bind in one, files read once, mistakes said before the run."""

from __future__ import annotations

import gc
import inspect
import os
import re
from pathlib import Path

import comfy.clip_vision
import folder_paths
import pack
import pytest
import scenes
import tiny
import torch
from safetensors.torch import save_file

checkpoint = pack.module("nested_core.checkpoint")
errors = pack.module("nested_core.errors")
kv_cache = pack.module("nodes.bridge.model.kv_cache")
paths = pack.module("nodes.bridge.paths")

ENCODER, VISION = "quick.safetensors", "quick_vision.safetensors"


def _file(kind: str, name: str) -> Path:
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _save_vision(name: str, width: int = 24, seed: int = 0) -> Path:
    path = _file("clip_vision", name)
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    save_file({"vision_model.embeddings.class_embedding": drawn}, path)
    return path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The CLIP vision files that were read; ComfyUI's own reader also takes small ones."""
    small = tiny.with_small_files(comfy.clip_vision.load_clipvision_from_sd)
    monkeypatch.setattr(comfy.clip_vision, "load_clipvision_from_sd", small)
    found: list[str] = []
    load = comfy.clip_vision.load

    def watched(path):
        found.append(Path(path).name)
        return load(path)

    monkeypatch.setattr(comfy.clip_vision, "load", watched)
    return found


@pytest.fixture
def files(sdxl, reads):
    """An encoder and its image encoder in the model folders."""
    checkpoint.save_encoder(sdxl.encoder, _file("nested_attention", ENCODER))
    _save_vision(VISION)
    yield
    for kind, name in (("nested_attention", ENCODER), ("clip_vision", VISION)):
        _file(kind, name).unlink(missing_ok=True)


def _image(seed=0, references=1):
    return torch.rand(references, 40, 50, 3, generator=torch.Generator().manual_seed(seed))


def _make(**inputs):
    given = {"image": _image(), "encoder_name": ENCODER, "clip_vision_name": VISION}
    return pack.run("Subject", **{**given, **inputs})


@pytest.mark.smoke
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_separate_nodes_in_one(files, masked):
    mask = torch.zeros(1, 40, 50)
    mask[0, 5:30, 10:20] = 1
    image = _image(references=2)
    encode = {"mask": mask, "crop": "subject"} if masked else {"crop": "center"}
    expected = pack.run(
        "EncodeSubject",
        encoder=pack.run("LoadEncoder", encoder_name=ENCODER),
        image=image,
        clip_vision=pack.run_host("CLIPVisionLoader", clip_name=VISION),
        **encode,
    )
    word = {"token": "<anna>", "noun": "woman", "fidelity": 0.7}
    bound = pack.run("BindSubject", subject=expected, **word)
    binding, subject = _make(image=image, **({"mask": mask} if masked else {}), **word)
    assert binding.subject is subject
    assert torch.equal(subject.tokens, expected.tokens)
    assert subject.thumbnail == expected.thumbnail
    assert binding.id == bound.id
    assert (binding.token, binding.noun) == (bound.token, bound.noun)
    assert (binding.strength, binding.token_weight) == (bound.strength, bound.token_weight)


def test_it_draws_the_subject(files, sdxl):
    binding, _ = _make(token="<anna>")
    model, clip = sdxl.apply(binding)
    negative = sdxl.encode(clip, "")
    bound = sdxl.sample(model, sdxl.encode(clip, "a photo of <anna>"), negative)
    plain = sdxl.sample(sdxl.model, sdxl.encode(sdxl.clip, "a photo of person"), negative)
    assert scenes.relative_difference(bound, plain) > 0.01


class TestReadOnce:
    def test_whoever_names_the_encoder_gets_the_same(self, files):
        first, second = (_make(image=_image(seed))[1] for seed in (0, 1))
        loaded = pack.run("LoadEncoder", encoder_name=ENCODER)
        assert first.encoder is second.encoder is loaded
        assert pack.run("LoadEncoder", encoder_name=ENCODER, hidden_state="last") is not loaded

    def test_the_image_encoder_is_read_once_for_all_encoders(self, files, reads):
        other = _file("nested_attention", "other.safetensors")
        checkpoint.save_encoder(pack.run("LoadEncoder", encoder_name=ENCODER), other)
        held = [_make(), _make(image=_image(1)), _make(encoder_name=other.name)]
        assert reads == [VISION]
        assert held[0][1].encoder is not held[2][1].encoder
        other.unlink()

    def test_nothing_is_held_when_nobody_holds_it(self, files, reads):
        for _ in range(2):
            _make()
            gc.collect()
        assert reads == [VISION, VISION]
        shared_files = pack.module("nodes.bridge.shared_files")
        known = (
            shared_files._encoders,
            shared_files._clip_visions,
            shared_files._last_clip_vision_of,
        )
        assert [len(each) for each in known] == [0, 0, 0]

    def test_keys_and_values_of_one_photograph_are_projected_once(self, files, sdxl):
        subjects = [_make(token=token)[1] for token in ("<anna>", "<ben>")]
        assert subjects[0] is not subjects[1]
        one, other = (
            kv_cache.keys_and_values(each, sdxl.sites, tiny.CPU, torch.float32) for each in subjects
        )
        assert one is other

    @pytest.mark.parametrize("kind", ["nested_attention", "clip_vision"])
    def test_a_replaced_file_is_read_again(self, files, sdxl, kind):
        node = pack.node("Subject")
        names = {"encoder_name": ENCODER, "clip_vision_name": VISION}
        before, held = node.fingerprint_inputs(**names), _make()
        assert node.fingerprint_inputs(image=None, **names, token="<a>") == before
        if kind == "clip_vision":
            path = _save_vision(VISION, seed=9)
        else:
            path = _file(kind, ENCODER)
            checkpoint.save_encoder(scenes.make_encoder("sdxl", sdxl.model, seed=8), path)
        os.utime(path, ns=(1, 1))
        assert node.fingerprint_inputs(**names) != before
        assert not torch.equal(_make()[1].tokens, held[1].tokens)


class TestMistakes:
    @staticmethod
    def said_before_the_run(name="Subject", **inputs):
        return pack.node(name).validate_inputs(**inputs)

    def test_all_is_well(self, files):
        names = {"encoder_name": ENCODER, "clip_vision_name": VISION}
        assert self.said_before_the_run(**names) is True
        # Names that another node hands over are not known yet.
        assert self.said_before_the_run() is True
        assert self.said_before_the_run(encoder_name=None, clip_vision_name=None) is True
        pack.node("Subject").fingerprint_inputs(encoder_name=None, clip_vision_name=None)

    def test_without_an_image_encoder(self, files):
        names = {"encoder_name": ENCODER, "clip_vision_name": "none"}
        said = self.said_before_the_run(**names)
        assert said == (
            f"clip_vision_name: it is 'none', but encoder '{ENCODER}' reads photographs through a CLIP "
            "vision model. Choose the one that it was trained with; its file belongs into "
            f"{' or '.join(folder_paths.get_folder_paths('clip_vision'))}."
        )
        with pytest.raises(errors.SubjectError, match=r"^clip_vision_name: it is 'none'"):
            _make(**names)

    @pytest.mark.parametrize(
        "name, kind, given, begin",
        [
            (
                "Subject",
                "nested_attention",
                {"encoder_name": "gone", "clip_vision_name": VISION},
                "encoder_name: ",
            ),
            (
                "Subject",
                "clip_vision",
                {"encoder_name": ENCODER, "clip_vision_name": "gone"},
                "clip_vision_name: ",
            ),
            ("LoadEncoder", "nested_attention", {"encoder_name": "gone"}, ""),
            ("LoadSubject", "nested_subjects", {"subject_name": "gone"}, ""),
        ],
    )
    def test_a_file_that_is_not_there(self, files, name, kind, given, begin):
        said = self.said_before_the_run(name, **given)
        assert said.startswith(f"{begin}'gone' was not found. Put the ")
        assert folder_paths.get_folder_paths(kind)[0] in said

    def test_both_files_are_named_at_once(self):
        said = self.said_before_the_run(encoder_name="gone", clip_vision_name="lost")
        assert "encoder_name: 'gone' was not found" in said
        assert "clip_vision_name: 'lost' was not found" in said

    def test_a_file_that_no_combo_offers(self, files):
        hidden = _file("nested_attention", "pickle.bin")
        hidden.write_bytes(b"")
        said = self.said_before_the_run("LoadEncoder", encoder_name=hidden.name)
        assert "'pickle.bin' was not found" in said
        hidden.unlink()

    @pytest.mark.parametrize("kind", [paths.ENCODERS, paths.SUBJECTS, paths.CLIP_VISIONS])
    def test_an_empty_folder_says_where_files_go(self, monkeypatch, tmp_path, kind):
        empty = {kind: ([str(tmp_path)], {".safetensors"})}
        monkeypatch.setattr(
            folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **empty}
        )
        folder_paths.filename_list_cache.pop(kind, None)
        offered = {
            each.id: each.options
            for name in ("Subject", "LoadEncoder", "LoadSubject")
            for each in pack.node(name).define_schema().inputs
            if getattr(each, "options", None)
        }
        shown = [options[0] for options in offered.values() if kind in str(options[0])]
        assert set(shown) == {f"none in models/{kind}"}
        said = paths.missing_file(kind, shown[0])
        assert re.match("there is no (encoder|subject|CLIP vision model) yet. Put its ", said)
        assert str(tmp_path) in said
        folder_paths.filename_list_cache.pop(kind, None)

    def test_another_image_encoder(self, files):
        small = _save_vision("small.safetensors", width=16)
        with pytest.raises(
            errors.SubjectError,
            match=f"^Subject from Photo: encoder '{ENCODER}' reads a CLIP vision model of hidden size 24 "
            "at 32 px, but the connected CLIP vision model has hidden size 16. ",
        ):
            _make(clip_vision_name=small.name)
        small.unlink()

    @pytest.mark.parametrize("content", ["a model of another kind", "no model"])
    def test_a_file_that_is_no_image_encoder(self, files, content):
        path = _file("clip_vision", "strange.safetensors")
        if content == "no model":
            path.write_bytes(b"what is this")
        else:
            save_file({"something": torch.zeros(2)}, path)
        with pytest.raises(
            errors.SubjectError,
            match=r"^clip_vision_name: 'strange[.]safetensors' is no image encoder",
        ):
            _make(clip_vision_name=path.name)
        path.unlink()


def test_the_schemas_defaults_are_those_of_a_call_with_keywords_alone():
    node = pack.node("Subject")
    schema = {each.id: each for each in node.define_schema().inputs}
    assert list(schema) == [
        "image", "token", "noun", "fidelity", "encoder_name", "clip_vision_name", "mask",
    ]  # fmt: skip
    parameters = inspect.signature(node.execute).parameters
    assert set(parameters) == set(schema)
    for name in ("token", "noun", "fidelity"):
        assert schema[name].default == parameters[name].default
    assert schema["mask"].optional
    assert parameters["mask"].default is None


class TestNothingBound:
    @pytest.mark.parametrize("bindings", [None, {}, {"binding_0": None, "binding_3": None}])
    def test_model_and_clip_pass_through(self, sdxl, bindings, caplog):
        caplog.set_level("INFO")
        given = {} if bindings is None else {"bindings": bindings}
        model, clip = pack.run("Apply", model=sdxl.model, clip=sdxl.clip, separation=0.5, **given)
        assert model is sdxl.model
        assert clip is sdxl.clip
        assert "no binding is connected" in caplog.text

    def test_one_that_is_left_is_bound(self, sdxl):
        binding = sdxl.bind()
        bindings = {"binding_0": None, "binding_1": binding}
        model, _ = pack.run("Apply", model=sdxl.model, clip=sdxl.clip, bindings=bindings)
        assert model is not sdxl.model
