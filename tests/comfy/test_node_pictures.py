"""What nodes show on the page after a run: the photographs as the encoder saw them, thumbnails."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import comfy.clip_vision
import comfy.utils
import folder_paths
import numpy as np
import pack
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

preprocess = pack.module("nested_core.preprocess")
checkpoint = pack.module("nested_core.checkpoint")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder that a server makes when it starts."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "temp_directory", str(folder))
    return folder


def _pictures(output) -> list[np.ndarray]:
    """The pixels of the files that a node's `ui` names, found as ComfyUI's `/view` finds them."""
    assert set(output.ui) == {"images"}
    found = []
    for image in output.ui["images"]:
        assert image["type"] == "temp"
        folder = Path(folder_paths.get_temp_directory(), image["subfolder"])
        with Image.open(folder / image["filename"]) as picture:
            found.append(np.asarray(picture))
    return found


def _seen(vision, run) -> tuple[object, list[np.ndarray]]:
    """A node's output, and the pixels that went into the image encoder's own model meanwhile."""
    pixels: list[torch.Tensor] = []
    hook = vision.model.register_forward_pre_hook(
        lambda _module, _args, given: pixels.append(given["pixel_values"]), with_kwargs=True
    )
    try:
        output = run()
    finally:
        hook.remove()
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (preprocess.CLIP_MEAN, preprocess.CLIP_STD)
    )
    return output, [((each[0] * std + mean) * 255).movedim(0, -1).numpy() for each in pixels]


def _assert_same_pictures(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1.0  # of 255


def _image(references=1, seed=0):
    return torch.rand(references, 40, 50, 3, generator=torch.Generator().manual_seed(seed))


def _mask():
    mask = torch.zeros(1, 40, 50)
    mask[0, 5:30, 10:20] = 1
    return mask


def _encode(scene, **inputs):
    given = {"encoder": scene.encoder, "image": _image(), "clip_vision": scene.vision, **inputs}
    return pack.node("EncodeSubject").execute(**given)


class TestEncodeSubject:
    @pytest.mark.parametrize(
        "crop, masked",
        [
            ("center", False),
            ("center", True),
            ("pad", False),
            ("pad", True),
            ("subject", True),
        ],
    )
    def test_each_reference_is_shown_as_the_image_encoder_saw_it(self, sdxl, crop, masked):
        mask = {"mask": _mask()} if masked else {}
        output, seen = _seen(
            sdxl.vision, lambda: _encode(sdxl, image=_image(references=3), crop=crop, **mask)
        )
        assert len(seen) == 3
        _assert_same_pictures(_pictures(output), seen)

    def test_what_the_mask_leaves_out_is_shown_painted_over(self, sdxl):
        (picture,) = _pictures(_encode(sdxl, mask=_mask(), crop="pad"))
        mean = np.array(preprocess.CLIP_MEAN) * 255
        assert np.abs(picture[:, -8:] - mean).max() <= 1
        assert np.abs(picture[12:16, 8:11] - mean).max() > 20

    def test_progress_counts_the_photographs(self, sdxl, monkeypatch):
        seen = []
        hook = lambda value, total, *_args, **_more: seen.append((value, total))  # noqa: E731
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
        _encode(sdxl, image=_image(references=3))
        assert seen[0] == (1, 3)  # ComfyUI leaves out what comes too fast
        assert seen[-1] == (3, 3)

    def test_the_output_is_what_it_was_without_a_page(self, sdxl, temporary):
        shown = _encode(sdxl)
        (temporary / "nested_attention").rename(temporary.parent / "moved")
        temporary.rmdir()
        alone = _encode(sdxl)
        assert alone.ui is None
        assert not temporary.exists()
        assert torch.equal(alone[0].tokens, shown[0].tokens)
        assert len(alone.result) == len(shown.result) == 1

    def test_the_same_picture_is_written_once_and_never_changed(self, sdxl, temporary):
        first = _encode(sdxl)
        (file,) = (temporary / "nested_attention").iterdir()
        before = file.stat().st_mtime_ns, file.read_bytes()
        assert _encode(sdxl).ui == first.ui
        assert _encode(sdxl, image=_image(seed=1)).ui != first.ui
        assert (file.stat().st_mtime_ns, file.read_bytes()) == before
        assert len(list((temporary / "nested_attention").iterdir())) == 2

    def test_a_folder_that_cannot_be_written_loses_no_subject(self, sdxl, temporary):
        (temporary / "nested_attention").write_bytes(b"in the way")
        output = _encode(sdxl)
        assert output.ui is None
        assert output[0].references == (6,)


def test_subject_from_photo_shows_what_the_image_encoder_saw(sdxl, monkeypatch):
    encoders, visions = (
        Path(folder_paths.get_folder_paths(kind)[0]) for kind in ("nested_attention", "clip_vision")
    )
    for folder in (encoders, visions):
        folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_encoder(sdxl.encoder, encoders / "shown.safetensors")
    save_file(
        {"vision_model.embeddings.class_embedding": torch.ones(24)}, visions / "shown.safetensors"
    )
    monkeypatch.setattr(
        comfy.clip_vision,
        "load_clipvision_from_sd",
        tiny.with_small_files(comfy.clip_vision.load_clipvision_from_sd),
    )
    vision = pack.run_host("CLIPVisionLoader", clip_name="shown.safetensors")
    given = {"encoder_name": "shown.safetensors", "clip_vision_name": "shown.safetensors"}
    image = _image(references=2)
    output = pack.node("Subject").execute(image=image, mask=_mask(), **given)
    _, seen = _seen(
        vision,
        lambda: _encode(sdxl, image=image, mask=_mask(), crop="subject", clip_vision=vision),
    )
    _assert_same_pictures(_pictures(output), seen)
    assert len(output.result) == 2
    for folder in (encoders, visions):
        (folder / "shown.safetensors").unlink()


def _thumbnail(subject) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(subject.thumbnail))) as picture:
        return np.asarray(picture.convert("RGB"))


class TestThumbnails:
    @pytest.mark.parametrize("has_thumbnail", [True, False])
    def test_load_subject_shows_the_files(self, sdxl, has_thumbnail):
        subject = sdxl.subject()
        subject = subject if has_thumbnail else replace(subject, thumbnail="")
        folder = Path(folder_paths.get_folder_paths("nested_subjects")[0])
        path = checkpoint.save_new_subject(subject, folder, "shown")
        output = pack.node("LoadSubject").execute(subject_name=path.name, encoder=sdxl.encoder)
        path.unlink()
        assert torch.equal(output[0].tokens, subject.tokens)
        if has_thumbnail:
            (found,) = _pictures(output)
            assert np.array_equal(found, _thumbnail(subject))
        else:
            assert output.ui is None

    def test_bind_subject_shows_each_of_its_subjects(self, sdxl):
        subjects = [sdxl.subject(seed) for seed in range(3)]
        bind = pack.node("BindSubject").execute
        (alone,) = _pictures(bind(subject=subjects[1]))
        assert np.array_equal(alone, _thumbnail(subjects[1]))
        subjects[1] = replace(subjects[1], thumbnail="")
        row = pack.run("SubjectPerPicture", subjects=dict(enumerate(subjects)))
        first, third = _pictures(bind(subject=row))
        assert np.array_equal(first, _thumbnail(subjects[0]))
        assert np.array_equal(third, _thumbnail(subjects[2]))

    def test_apply_shows_its_bindings_in_their_order(self, sdxl):
        subjects = [sdxl.subject(seed) for seed in range(2)]
        anna, rex = (
            sdxl.bind(subject, token=token)
            for subject, token in zip(subjects, ("<anna>", "<rex>"), strict=True)
        )

        def apply(**bindings):
            return pack.node("Apply").execute(model=sdxl.model, clip=sdxl.clip, bindings=bindings)

        output = apply(binding_0=rex, binding_1=None, binding_2=anna)
        found, expected = _pictures(output), [_thumbnail(each) for each in reversed(subjects)]
        assert [np.array_equal(*pair) for pair in zip(found, expected, strict=True)] == [True, True]
        assert len(output.result) == 2
        assert apply().ui is None

    def test_what_is_no_jpeg_is_not_shown(self, sdxl):
        subject = replace(sdxl.subject(), thumbnail=base64.b64encode(b"GIF89a").decode())
        assert pack.node("BindSubject").execute(subject=subject).ui is None


def test_layers_of_maps_are_transparent_pictures_of_their_own_kind(temporary):
    maps, sites = pack.module("nested_core.maps"), pack.module("nested_core.families.unet_sites")
    record = maps.MapRecord(maps.RecordPlan())
    record.begin(1)
    seen = torch.zeros(4, 6, dtype=torch.float16)
    seen[1, 5] = 0.25
    site = sites.AttentionSite("middle", 0, 0)
    record.add(maps.SiteMap(0, 1, site, 0, "<anna>", seen))
    shown = pack.module("nodes.bridge.shown").show_overlays(record)
    ((key, (layer,)),) = shown.items()
    assert key == "nested_attention_overlays"
    assert (layer["picture"], layer["token"]) == (0, "<anna>")
    with Image.open(temporary / layer["subfolder"] / layer["filename"]) as picture:
        assert picture.mode == "RGBA"
        cover = np.asarray(picture)[..., 3]
        assert cover.shape == (4, 6)
        assert cover[1, 5] > 200
        assert cover.sum() == cover[1, 5]
        assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((5, 1))) == layer["colour"]
