"""What a user reads after a mistake: where, what was found, what was expected, and the remedy."""

from __future__ import annotations

import copy
import re

import comfy.model_base
import comfy.supported_models
import pack
import pytest
import scenes
import tiny
import torch
from comfy.model_patcher import ModelPatcher

errors = pack.module("nested_core.errors")
checkpoint = pack.module("nested_core.checkpoint")


def _message(error: str):
    return pytest.raises(errors.NestedAttentionError, match=f"^{re.escape(error)}$")


class TestEncoderAndModel:
    def test_another_layout(self, sdxl):
        sd15 = scenes.make_scene("sd15")
        with _message(
            "Apply Nested Attention: encoder 'tiny' (made for 'sd15') has 7 attention sites (d1.0 d3.0 "
            "m0.0 u0.0 u1.0 u2.0 u3.0), but this MODEL has 11 attention sites (d3.0 d5.0-1 m0.0-1 "
            "u0.0-1 u1.0-1 u2.0 u3.0). Connect the kind of checkpoint that the encoder was trained "
            "for, or load an encoder for this one."
        ):
            sdxl.apply(sd15.bind())

    def test_another_width(self, sdxl):
        wide = tiny.unet("sdxl", model_channels=64)
        with _message(
            "Apply Nested Attention: encoder 'tiny' (made for 'sdxl') has width 64 at site d3.0, but "
            "this MODEL has width 128 at site d3.0. Connect the kind of checkpoint that the encoder "
            "was trained for, or load an encoder for this one."
        ):
            sdxl.apply(sdxl.bind(), model=wide)

    @pytest.mark.parametrize(
        "name", ["SD20", "SVD_img2vid", "SD_X4Upscaler", "PixArtAlpha", "HunyuanDiT", "Flux2"]
    )
    def test_another_family_of_models_is_named(self, sdxl, name):
        config = getattr(comfy.supported_models, name)
        foreign = copy.copy(sdxl.model)
        foreign.model = copy.copy(sdxl.model.model)
        foreign.model.model_config = config.__new__(config)
        with _message(
            f"Apply Nested Attention: this MODEL is '{name}'. Nested Attention works with the UNets of "
            "the SD1.5 and SDXL families (also SSD-1B, Vega, KOALA, the SDXL refiner and inpaint "
            "models), Flux and Chroma, SD3 and SD3.5, Qwen-Image, Lumina 2 and Z-Image, "
            "Cosmos-Predict2 and Anima, Wan 2.1 and 2.2. Connect such a checkpoint."
        ):
            sdxl.apply(sdxl.bind(), model=foreign)

    @pytest.mark.parametrize(
        "name", ["SD15_instructpix2pix", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"]
    )
    def test_relatives_of_the_families_are_accepted(self, sdxl, name):
        config = getattr(comfy.supported_models, name)
        relative = copy.copy(sdxl.model)
        relative.model = copy.copy(sdxl.model.model)
        relative.model.model_config = config.__new__(config)
        sdxl.apply(sdxl.bind(), model=relative)

    def test_a_model_that_is_nothing_known(self, sdxl):
        stranger = ModelPatcher(torch.nn.Linear(2, 2), tiny.CPU, tiny.CPU)
        with pytest.raises(errors.HostError, match="this MODEL is 'Linear'"):
            sdxl.apply(sdxl.bind(), model=stranger)

    def test_text_encoders_without_clip_l_and_clip_g(self, sdxl):
        class SD2Tokenizer:
            def tokenize_with_weights(self, *_, **__):
                return {"h": [[(0, 1.0)]]}

        foreign = sdxl.clip.clone()
        foreign.tokenizer = SD2Tokenizer()
        with _message(
            "Apply Nested Attention: this CLIP has the tokenizers 'h', expected 'l' (SD1.5) or 'g' (SDXL "
            "refiner) or 'g, l' (SDXL). Connect the CLIP that belongs to the MODEL."
        ):
            sdxl.apply(sdxl.bind(), clip=foreign)


class TestImageEncoder:
    def test_missing(self, sdxl):
        with _message(
            "Encode Subject: encoder 'tiny' reads a CLIP vision model of hidden size 24 at 32 px, but "
            "clip_vision is not connected. Add a Load CLIP Vision node and connect it."
        ):
            pack.run("EncodeSubject", encoder=sdxl.encoder, image=torch.rand(1, 32, 32, 3))

    @pytest.mark.parametrize(
        "sizes, found",
        [({"hidden_size": 16}, "hidden size 16"), ({"image_size": 48}, "image size 48")],
    )
    def test_another_one(self, sdxl, sizes, found):
        sdxl.vision = tiny.clip_vision(**sizes)
        with _message(
            "Encode Subject: encoder 'tiny' reads a CLIP vision model of hidden size 24 at 32 px, but "
            f"the connected CLIP vision model has {found}. Load the CLIP vision model that the encoder "
            "was trained with (ViT-H/14 has hidden size 1280, ViT-L/14 1024)."
        ):
            sdxl.subject()


class TestPictures:
    def _encode(self, scene, image, **inputs):
        return pack.run(
            "EncodeSubject", encoder=scene.encoder, image=image, clip_vision=scene.vision, **inputs
        )

    def test_an_empty_batch(self, sdxl):
        with _message(
            "Encode Subject: the image batch is empty (shape (0, 32, 32, 3)). Connect at least one "
            "photograph of the subject."
        ):
            self._encode(sdxl, torch.rand(0, 32, 32, 3))

    def test_two_channels(self, sdxl):
        with _message(
            "Encode Subject: the image has the shape (1, 32, 32, 2), expected [pictures, height, width, "
            "channels] with 1, 3 or 4 channels. Connect an IMAGE output."
        ):
            self._encode(sdxl, torch.rand(1, 32, 32, 2))

    def test_crop_subject_without_a_mask(self, sdxl):
        with _message(
            "Encode Subject: crop 'subject' cuts out the mask's box, but no mask is connected. Connect a "
            "mask of the subject, or choose the crop 'center' or 'pad'."
        ):
            self._encode(sdxl, torch.rand(1, 32, 32, 3), crop="subject")

    def test_crop_subject_with_an_empty_mask(self, sdxl):
        with _message(
            "Encode Subject: the mask of reference 1 is empty, so there is no subject to cut out. Paint "
            "the subject in the mask, or choose the crop 'center' or 'pad'."
        ):
            self._encode(
                sdxl, torch.rand(1, 32, 32, 3), crop="subject", mask=torch.zeros(1, 32, 32)
            )

    def test_masks_that_do_not_belong_to_the_pictures(self, sdxl):
        with _message(
            "Encode Subject: the mask has the shape (2, 32, 32), expected [1 or 3, height, width] for 3 "
            "reference image(s). Connect one mask for all references or one for each."
        ):
            self._encode(sdxl, torch.rand(3, 32, 32, 3), mask=torch.ones(2, 32, 32))


class TestBinding:
    @pytest.mark.parametrize(
        "inputs, message",
        [
            (
                {"token": " "},
                "Bind Subject: the token is empty. Give the subject a word of its own that you then "
                "write in the prompt, such as <anna>.",
            ),
            (
                {"noun": "woman (old)"},
                "Bind Subject '<anna>': the noun 'woman (old)' contains prompt syntax (a parenthesis, a "
                "backslash or 'embedding:'). Use plain words such as 'person' or 'black dog'; write "
                "weights around the token in the prompt instead: (<anna>:1.2).",
            ),
            (
                {"start_percent": 0.7, "end_percent": 0.2},
                "Bind Subject '<anna>': start_percent 0.7 is after end_percent 0.2, so the subject would "
                "never act. Exchange the two.",
            ),
            (
                {"strength": 2.5},
                "Bind Subject '<anna>': strength is 2.5, expected a number from 0 to 2.",
            ),
            (
                {"token_weight": float("nan")},
                "Bind Subject '<anna>': token_weight is nan, expected a number from 0.1 to 10.",
            ),
            (
                {"sites": "u3-1"},
                "Sites: the range 3-1 in 'u3-1' runs backwards. Write 1-3.",
            ),
            (
                {"sites": "u,,d"},
                "Sites: cannot read the term ''. Expected comma-separated terms like u, m0, u3-5, u3.1, "
                "d4.0-1 or !d (d, m, u = input, middle, output blocks; ! leaves a term out).",
            ),
            (
                {"mask": torch.ones(1, 2, 3, 4)[:, :, :, :3]},
                "Bind Subject '<anna>': the mask has the shape (1, 2, 3, 3), expected [pictures, height, "
                "width]. Connect a MASK output.",
            ),
        ],
    )
    def test_bad_input(self, sdxl, inputs, message):
        with _message(message):
            sdxl.bind(**inputs)

    def test_the_same_token_twice(self, sdxl):
        with _message(
            "Apply Nested Attention: the token '<anna>' is bound twice. Give each subject a token of its "
            "own, such as <anna> and <rex>."
        ):
            sdxl.apply(sdxl.bind(), sdxl.bind(sdxl.subject(1)))

    def test_a_site_that_the_model_does_not_have(self, sdxl):
        with _message(
            "Sites 'u9': this model has no such cross-attention layer. It has d3.0 d5.0-1 m0.0-1 u0.0-1 "
            "u1.0-1 u2.0 u3.0. Use one of those, or leave 'sites' empty for all of them. The numbers are "
            "ComfyUI's. Other packs count only the blocks that have attention: their d0 is d3 here."
        ):
            sdxl.apply(sdxl.bind(sites="u9"))


class TestFiles:
    def test_a_file_that_is_gone_names_the_folder(self):
        import folder_paths

        folder = folder_paths.get_folder_paths("nested_attention")[0]
        with pytest.raises(FileNotFoundError) as error:
            pack.run("LoadEncoder", encoder_name="gone.safetensors")
        assert str(error.value) == (
            f"'gone.safetensors' was not found. Put the .safetensors file into {folder}, then refresh "
            "the node list (R) and choose it again."
        )

    def test_a_subject_of_another_encoder(self, sdxl, tmp_path):
        checkpoint.save_subject(sdxl.subject(), tmp_path / "anna.safetensors")
        other = scenes.make_encoder("sdxl", sdxl.model, seed=99)
        ours, theirs = (checkpoint.encoder_hash(encoder)[:12] for encoder in (sdxl.encoder, other))
        with pytest.raises(errors.CheckpointError) as error:
            checkpoint.load_subject(tmp_path / "anna.safetensors", other)
        assert all(part in str(error.value) for part in ("anna.safetensors", ours, theirs))
