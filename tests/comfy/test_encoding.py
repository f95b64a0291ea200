"""Photographs to subject tokens: ComfyUI's CLIP vision, transformers, crops, masks, references."""

from __future__ import annotations

import comfy.clip_model
import pack
import pytest
import scenes
import tiny
import torch

preprocess = pack.module("nested_core.preprocess")


def _random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (200, 301), (64, 640), (225, 224)])
@pytest.mark.parametrize("target", [224, 32])
def test_our_preprocessing_is_comfyuis(size, target):
    image = _random_images(2, *size, 3) * 1.2 - 0.1
    expected = comfy.clip_model.clip_preprocess(image, size=target)
    assert torch.equal(preprocess.clip_pixels(image, target), expected)


@pytest.mark.parametrize("hidden_state", ["penultimate", "last"])
@pytest.mark.parametrize("crop", ["center", "pad"])
def test_transformers_and_comfyui_give_the_same_subject(hidden_state, crop):
    transformers = pytest.importorskip("transformers")
    import importlib

    vision_module = importlib.import_module(f"{pack.NAME}.nested_core.vision")
    config = pack.module("nested_core.config")
    scene = scenes.make_scene(
        "sdxl",
        image_encoder=config.ImageEncoderConfig(
            hidden_size=24, image_size=32, hidden_state=hidden_state
        ),
    )
    sizes = {key: value for key, value in tiny.VISION_CONFIG.items() if key != "model_type"}
    twin = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes)).eval()
    weights = scene.vision.get_sd()
    state = twin.state_dict()
    state.update({key: value for key, value in weights.items() if key in state})
    missing = [key for key in state if key not in weights and "position_ids" not in key]
    assert missing == []
    twin.load_state_dict(state)

    image = _random_images(3, 50, 41, 3)
    vision = vision_module.transformers_encoder(twin)
    ours, _ = vision_module.encode_photographs(scene.encoder, vision, image, crop=crop)
    comfys = pack.run(
        "EncodeSubject", encoder=scene.encoder, image=image, clip_vision=scene.vision, crop=crop
    )
    assert ours.references == comfys.references == (6, 6, 6)
    assert scenes.relative_difference(ours.tokens, comfys.tokens) < 1e-4
    assert ours.thumbnail == comfys.thumbnail


def test_the_hidden_states_differ(sdxl):
    config = pack.module("nested_core.config")
    last = scenes.make_scene(
        "sdxl",
        image_encoder=config.ImageEncoderConfig(hidden_size=24, image_size=32, hidden_state="last"),
    )
    assert scenes.relative_difference(last.subject().tokens, sdxl.subject().tokens) > 0.05


def test_references_stand_side_by_side_or_are_averaged(sdxl):
    images = _random_images(3, 32, 32, 3)

    def encode(image, **inputs):
        return pack.run(
            "EncodeSubject", encoder=sdxl.encoder, image=image, clip_vision=sdxl.vision, **inputs
        ).tokens

    alone = [encode(image[None]) for image in images]
    assert torch.allclose(encode(images), torch.cat(alone), atol=1e-5)
    averaged = encode(images, combine="average")
    assert torch.allclose(averaged, torch.stack(alone).mean(0), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_pictures_and_pictures_with_alpha_are_converted(sdxl, channels):
    image = _random_images(1, 40, 40, channels)
    rgb = image.repeat(1, 1, 1, 3) if channels == 1 else image[..., :3]
    found, expected = (
        pack.run("EncodeSubject", encoder=sdxl.encoder, image=each, clip_vision=sdxl.vision).tokens
        for each in (image, rgb)
    )
    assert torch.equal(found, expected)


class TestCrop:
    MEAN = torch.tensor(preprocess.CLIP_MEAN)

    def _square(self, image, mask, crop):
        return preprocess.square_photographs(image, mask, crop)[0][0]

    def test_center_leaves_the_picture_to_the_image_encoder(self):
        image = _random_images(1, 40, 60, 3)
        assert torch.equal(self._square(image, None, "center"), image[0])

    def test_pad_shows_the_whole_picture_between_borders_of_the_mean_colour(self):
        image = _random_images(1, 40, 60, 3)
        padded = self._square(image, None, "pad")
        assert padded.shape == (60, 60, 3)
        assert torch.equal(padded[10:50], image[0])
        assert torch.equal(padded[:10], self.MEAN.expand(10, 60, 3))

    def test_subject_cuts_out_the_masks_box_as_a_square_with_ten_percent_around_it(self):
        image = _random_images(1, 100, 200, 3)
        mask = torch.zeros(1, 100, 200)
        mask[0, 30:70, 80:100] = 1
        cut = self._square(image, mask, "subject")
        assert cut.shape == (48, 48, 3)  # the longer side 40, and 4 on either side
        assert torch.equal(cut[4:44, 14:34], image[0, 30:70, 80:100])
        assert torch.equal(cut[:, :14], self.MEAN.expand(48, 14, 3))

    def test_subject_at_the_edge_goes_on_in_the_mean_colour(self):
        image = _random_images(1, 50, 50, 3)
        mask = torch.zeros(1, 50, 50)
        mask[0, :10, :10] = 1
        cut = self._square(image, mask, "subject")
        assert cut.shape == (12, 12, 3)
        assert torch.equal(cut[1:11, 1:11], image[0, :10, :10])
        assert torch.equal(cut[0], self.MEAN.expand(12, 3))

    @pytest.mark.parametrize("crop", ["center", "pad", "subject"])
    def test_what_is_outside_the_mask_does_not_matter(self, sdxl, crop):
        mask = torch.zeros(1, 40, 40)
        mask[0, 10:30, 15:30] = 1
        image = _random_images(1, 40, 40, 3)
        other = torch.where(mask[..., None] > 0, image, _random_images(1, 40, 40, 3, seed=9))
        assert not torch.equal(image, other)
        tokens = [
            pack.run(
                "EncodeSubject",
                encoder=sdxl.encoder,
                image=each,
                clip_vision=sdxl.vision,
                mask=mask,
                crop=crop,
            ).tokens
            for each in (image, other)
        ]
        assert torch.equal(*tokens)

    def test_a_mask_of_another_size_is_fitted_to_the_picture(self):
        image = _random_images(1, 40, 40, 3)
        mask = torch.zeros(1, 20, 20)
        mask[0, :, :10] = 1
        fitted = self._square(image, mask, "center")
        assert torch.equal(fitted[:, :18], image[0, :, :18])
        assert torch.equal(fitted[:, 22:], self.MEAN.expand(40, 18, 3))


def test_half_precision_encoders_compute_in_float32(sdxl):
    import copy

    half = copy.deepcopy(sdxl.encoder).half()
    subject = pack.run(
        "EncodeSubject", encoder=half, image=_random_images(1, 32, 32, 3), clip_vision=sdxl.vision
    )
    expected = pack.run(
        "EncodeSubject",
        encoder=copy.deepcopy(half).float(),
        image=_random_images(1, 32, 32, 3),
        clip_vision=sdxl.vision,
    )
    assert subject.tokens.dtype == torch.float32
    assert torch.equal(subject.tokens, expected.tokens)
