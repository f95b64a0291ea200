"""What a user reads after a mistake with a diffusion transformer."""

from __future__ import annotations

import copy
import importlib
import re

import comfy.supported_models
import pack
import pytest
from bound_transformers import apply, bind, make_encoder, make_subject
from dit_scene import make_scene, shared_scene

errors = pack.module("nested_core.errors")


def message(error):
    return pytest.raises(errors.NestedAttentionError, match=f"^{re.escape(error)}$")


REMEDY = " Connect the kind of checkpoint that the encoder was trained for, or load an encoder for this one."


def test_an_encoder_of_another_depth():
    deep = make_scene("flux", depth=3)
    subject = make_subject(make_encoder(shared_scene("flux")))
    with message(
        "Apply Nested Attention: encoder 'tiny' (made for 'tiny') has 4 attention sites (d0-1 s0-1), but "
        "this MODEL has 5 attention sites (d0-2 s0-1)." + REMEDY
    ):
        apply(deep, bind(subject))


def test_an_encoder_of_another_width():
    wide = make_scene("wan", dim=64)
    subject = make_subject(make_encoder(shared_scene("wan")))
    with message(
        "Apply Nested Attention: encoder 'tiny' (made for 'tiny') has width 32 at site b0, but this MODEL "
        "has width 64 at site b0." + REMEDY
    ):
        apply(wide, bind(subject))


@pytest.mark.parametrize(
    ("family", "other", "whose"),
    [
        ("flux", "wan", "'wan' (Wan 2.1 and 2.2)"),
        # Their blocks have the same names and are of the same number and width.
        ("qwen_image", "lumina2", "'lumina2' (Lumina 2 and Z-Image)"),
    ],
)
def test_an_encoder_of_another_family(family, other, whose):
    other = make_scene(other, n_kv_heads=2) if other == "lumina2" else shared_scene(other)
    subject = make_subject(make_encoder(shared_scene(family)))
    with message(
        f"Apply Nested Attention: encoder 'tiny' (made for 'tiny') is for models of the family '{family}', "
        f"but this MODEL is of {whose}." + REMEDY
    ):
        apply(other, bind(subject))


@pytest.mark.parametrize(
    ("family", "sites", "found"),
    [
        (
            "flux",
            "u",
            "Sites: cannot read the term 'u'. Expected comma-separated terms like d, s0, d3-5 or !d "
            "(d, s = double, single; ! leaves a term out).",
        ),
        (
            "wan",
            "b0, s1",
            "Sites: cannot read the term 's1'. Expected comma-separated terms like b, b0, b3-5 or !b "
            "(b = blocks; ! leaves a term out).",
        ),
        (
            "flux",
            "s7",
            "Sites 's7': this model has no such block. It has d0-1 s0-1. Use one of those, or leave "
            "'sites' empty for all of them.",
        ),
    ],
)
def test_sites_that_the_family_has_not(family, sites, found):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    with message(found):
        apply(scene, bind(subject, sites=sites))


# Kind of checkpoint, and the class of its transformer in `comfy.ldm`.
REFUSED = [
    ("ChromaRadiance", "chroma_radiance.model.ChromaRadiance"),
    ("Flux2", "flux.model.Flux"),
    ("GenmoMochi", "genmo.joint_model.asymm_models_joint.AsymmDiTJoint"),
    ("HiDream", "hidream.model.HiDreamImageTransformer2DModel"),
    ("HunyuanDiT", "hydit.models.HunYuanDiT"),
    ("HunyuanVideo", "hunyuan_video.model.HunyuanVideo"),
    ("LongCatImage", "flux.model.Flux"),
    ("LTXV", "lightricks.model.LTXVModel"),
    ("Omnigen2", "omnigen.omnigen2.OmniGen2Transformer2DModel"),
    ("PixArtSigma", "pixart.pixartms.PixArtMS"),
    ("WAN21_HuMo", "wan.model.HumoWanModel"),
    ("WAN21_SCAIL", "wan.model.SCAILWanModel"),
    ("WAN22_Animate", "wan.model_animate.AnimateWanModel"),
    ("WAN22_S2V", "wan.model.WanModel_S2V"),
]


@pytest.mark.parametrize(("name", "path"), REFUSED)
def test_a_transformer_that_is_not_supported_is_named_with_those_that_are(name, path):
    scene = shared_scene("flux")
    module, _, model = path.rpartition(".")
    kind = getattr(importlib.import_module(f"comfy.ldm.{module}"), model)
    config = getattr(comfy.supported_models, name)
    foreign = copy.copy(scene.model)
    foreign.model = copy.copy(scene.model.model)
    foreign.model._modules = {"diffusion_model": kind.__new__(kind)}
    foreign.model.model_config = config.__new__(config)
    with message(
        f"Apply Nested Attention: this MODEL is '{name}'. Nested Attention works with the UNets of the "
        "SD1.5 and SDXL families (also SSD-1B, Vega, KOALA, the SDXL refiner and inpaint models), Flux "
        "and Chroma, SD3 and SD3.5, Qwen-Image, Lumina 2 and Z-Image, Cosmos-Predict2 and Anima, Wan "
        "2.1 and 2.2. Connect such a checkpoint."
    ):
        apply(scene, bind(make_subject(make_encoder(scene))), model=foreign)


def test_a_text_encoder_of_another_family():
    scene = shared_scene("flux")
    subject = make_subject(make_encoder(scene))
    with message(
        "Apply Nested Attention: this CLIP has the tokenizers 'umt5xxl', expected 'l, t5xxl' (Flux) or "
        "'t5xxl' (Chroma). Connect the CLIP that belongs to the MODEL."
    ):
        pack.run(
            "Apply",
            model=scene.model,
            clip=shared_scene("wan").clip,
            bindings={"binding_0": bind(subject)},
        )
