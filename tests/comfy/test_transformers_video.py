"""Video: Wan and its relatives, masks and maps frame by frame, windows of frames."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.supported_models as supported
import joint_composition
import node_helpers
import pack
import pytest
import torch
from bound_transformers import (
    PLAIN,
    PLAIN_TWO,
    TWO,
    apply,
    assert_equal,
    bind,
    make_encoder,
    make_subject,
    naive,
    rows_of,
)
from dit_scene import NEGATIVE, make_scene
from joint_composition import assert_composes, sample_bound, sample_naive
from joint_separation import JointSeparation
from joint_value_table import JointValueTable
from reference import positive_only

recording = pack.module("nodes.bridge.model.recording")
registry = pack.module("nodes.bridge.families.registry")
RecordPlan = pack.module("nested_core.maps").RecordPlan

MASK = torch.rand(1, 33, 21, generator=torch.Generator().manual_seed(4))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def seen_picture(tokens):
    """What CLIP vision has to say of a picture."""
    return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=drawn(1, tokens, 1280))}


# Configuration, what a node adds to both conditionings, the latent's height and width.
I2V = {"config": supported.WAN21_I2V, "model_type": "i2v", "in_dim": 36}
RELATIVES = {
    "i2v": (I2V, seen_picture(257), (9, 7)),
    # As many keys as the text has.
    "i2v, long": (I2V, seen_picture(512), (9, 7)),
    "i2v without a picture": (I2V, {}, (9, 7)),
    "fun, with a picture before the video": (
        {
            "config": supported.WAN21_FunControl2V,
            "model_type": "i2v",
            "in_dim": 48,
            "in_dim_ref_conv": 16,
        },
        {"reference_latents": [drawn(1, 16, 1, 8, 6)], **seen_picture(257)},
        (8, 6),
    ),
    "vace": (
        {"config": supported.WAN21_Vace, "model_type": "vace", "vace_layers": 3, "vace_in_dim": 96},
        {},
        (8, 6),
    ),
    "camera": (
        {"config": supported.WAN21_Camera, "model_type": "camera", "in_dim": 32},
        seen_picture(257),
        (9, 7),
    ),
    "2.2, 5B": ({"config": supported.WAN22_T2V, "in_dim": 48, "out_dim": 48}, {}, (9, 7)),
    "frames behind the video": ({}, {"time_dim_concat": drawn(1, 16, 2, 9, 7)}, (9, 7)),
}


@pytest.mark.smoke
@pytest.mark.parametrize("relative", RELATIVES)
def test_relatives_of_wan_equal_the_value_table(relative):
    unet, values, (height, width) = RELATIVES[relative]
    scene = make_scene("wan", **unet)
    scene.height, scene.width = height, width

    def prepare(*both):
        return tuple(node_helpers.conditioning_set_values(each, values) for each in both)

    masked = {"mask": MASK}
    assert_composes(
        scene,
        prepare=prepare,
        places=["behind"],
        binding=masked,
        settings=masked,
        acts=False,
        batch=2,
    )


def test_a_timestep_for_each_frame_equals_the_value_table():
    """As of Wan 2.2 5B, which is given the first frame."""
    scene = make_scene("wan", config=supported.WAN22_T2V, in_dim=48, out_dim=48)
    mask = torch.ones(1, 1, 2, 9, 7)
    mask[:, :, 0] = 0.0
    assert_composes(scene, places=["behind"], acts=False, noise_mask=mask)


FRAMES = 3


def of_many(number):
    """Masks of so many frames, and those of three frames of a latent by hand."""
    masks = torch.rand(number, 33, 21, generator=torch.Generator().manual_seed(number))
    parts = {3: [1, 1, 1], 9: [1, 4, 4], 6: [2, 2, 2]}[number]
    return masks, torch.stack([each.mean(0) for each in masks.split(parts)])[None]


@pytest.mark.parametrize("number", [3, 9, 6])
def test_masks_of_frames_equal_the_value_table(number):
    scene = make_scene("wan")
    scene.frames = FRAMES
    masks, by_hand = of_many(number)
    subject = make_subject(make_encoder(scene))
    found = sample_bound(scene, subject, binding={"mask": masks}, batch=2)
    expected, one_for_all = (
        sample_naive(scene, subject, settings={"mask": each}, batch=2)
        for each in (by_hand, by_hand.mean(1))
    )
    assert_equal(found, expected, one_for_all)


def test_a_mask_of_each_picture_where_pictures_have_one_frame():
    scene = make_scene("wan")
    scene.frames = 1
    masks = of_many(3)[0][:2]
    subject = make_subject(make_encoder(scene))
    found = sample_bound(scene, subject, binding={"mask": masks}, batch=2)
    assert_equal(found, sample_naive(scene, subject, settings={"mask": masks}, batch=2))


def test_subjects_are_kept_apart_frame_by_frame():
    scene = make_scene("wan")
    scene.frames = FRAMES
    encoders = make_encoder(scene), make_encoder(scene, "all_heads", 1.3, seed=8)
    anna, rex = make_subject(encoders[0]), make_subject(encoders[1], 3)
    masks, by_hand = of_many(9)
    sampled = []
    for separation in (1.0, 0.0):
        bindings = bind(anna, mask=masks), bind(rex, "<rex>", "dog")
        model, clip = apply(scene, *bindings, separation=separation)
        texts = [scene.encode(text, clip) for text in (TWO, NEGATIVE)]
        sampled.append(scene.sample(model, *texts, steps=4))
    subjects = naive(anna, mask=by_hand), naive(rex)
    slots = {
        row: subject
        for subject, noun in zip(subjects, ("woman", "dog"), strict=True)
        for row in rows_of(scene, PLAIN_TWO, noun)
    }
    table = JointSeparation(positive_only(slots), 1.0)
    texts = [scene.encode(text) for text in (PLAIN_TWO, NEGATIVE)]
    expected = scene.sample(table.on(scene.model), *texts, steps=4)
    effect = float((sampled[1] - expected).norm() / expected.norm())
    assert effect > 1e-4
    assert (sampled[0] - expected).norm() / expected.norm() < min(1e-4, 0.02 * effect)


def recorded(scene, model, clip, **sampling):
    model, record = recording.record_maps(
        model, RecordPlan(family=registry.host_family_of(model).family), False
    )
    latent = scene.sample(
        model, scene.encode(joint_composition.TEXT, clip), scene.encode(NEGATIVE, clip), **sampling
    )
    return latent, record


WINDOWS = {
    "context_length": 5,
    "context_overlap": 1,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "dim": 2,
    "freenoise": False,
}


def test_in_windows_each_frame_keeps_its_mask_and_its_maps():
    scene = make_scene("wan")
    scene.frames = 9
    masks = torch.zeros(9, 33, 21)
    masks[6:] = torch.rand(3, 33, 21, generator=torch.Generator().manual_seed(4))
    subject = make_subject(make_encoder(scene))
    model, clip = apply(scene, bind(subject, mask=masks))

    def in_windows(model):
        return pack.run_host(
            "ContextWindowsManual", "nodes_context_windows", model=model, **WINDOWS
        )

    options = {"cfg": 1.0, "steps": 1}
    found, record = recorded(scene, in_windows(model), clip, **options)
    table = JointValueTable(
        positive_only(dict.fromkeys(rows_of(scene), naive(subject, mask=masks[None])))
    )
    texts = [scene.encode(text) for text in (PLAIN, NEGATIVE)]
    expected, plain = (
        scene.sample(in_windows(each), *texts, **options)
        for each in (table.on(scene.model), scene.model)
    )
    assert_equal(found, expected, plain)
    assert record.pictures == list(range(9))
    assert record.num_frames == 9


def test_maps_are_shown_over_their_frames():
    scene = make_scene("wan")
    scene.frames = FRAMES
    subject = make_subject(make_encoder(scene))
    latent, record = recorded(scene, *apply(scene, bind(subject)), batch=2, steps=1)
    assert record.pictures == list(range(2 * FRAMES))
    images = torch.zeros(2 * 9, 72, 56, 3)
    images[9 + 4 :] = 1.0  # the second frame of the second video, and what is behind it
    sheets = {
        picture: pack.run(
            "ShowMaps", record=record, samples={"samples": latent}, picture=picture, image=images
        )
        for picture in (3, 4)
    }
    assert sheets[4].mean() > sheets[3].mean() + 0.02
