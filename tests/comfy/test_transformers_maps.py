"""Where subjects are seen in a diffusion transformer: recorded, drawn, and kept apart by it."""

from __future__ import annotations

import pack
import pytest
import torch
from bound_transformers import (
    PLAIN_TWO,
    TWO,
    apply,
    bind,
    make_encoder,
    make_subject,
    naive,
    rows_of,
)
from dit_scene import NEGATIVE, shared_scene
from each_family import EACH
from joint_separation import JointSeparation
from reference import positive_only

recording = pack.module("nodes.bridge.model.recording")
registry = pack.module("nodes.bridge.families.registry")
RecordPlan = pack.module("nested_core.maps").RecordPlan

HALF = 2e-3  # maps are kept in float16
LEFT = torch.zeros(1, 9, 7)
LEFT[..., :4] = 1.0


class Two:
    """Two subjects in one prompt, with the pack and by the value table."""

    def __init__(self, family, masks=(None, None), weights=(1.0, 1.0)):
        self.scene = scene = shared_scene(family)
        encoders = make_encoder(scene), make_encoder(scene, "all_heads", 1.3, seed=8)
        self.subjects = make_subject(encoders[0]), make_subject(encoders[1], 3, references=2)
        inputs = [
            {"token_weight": weight, **({} if mask is None else {"mask": mask})}
            for mask, weight in zip(masks, weights, strict=True)
        ]
        anna, rex = self.subjects
        self.bindings = bind(anna, **inputs[0]), bind(rex, "<rex>", "dog", **inputs[1])
        self.naive = naive(anna, **inputs[0]), naive(rex, **inputs[1])
        self.slots = {
            row: subject
            for subject, noun in zip(self.naive, ("woman", "dog"), strict=True)
            for row in rows_of(scene, PLAIN_TWO, noun)
        }

    def sampled(self, separation=0.0, record=None, **options):
        scene = self.scene
        model, clip = apply(scene, *self.bindings, separation=separation)
        if record is not None:
            model, self.record = recorded(model, **record)
        texts = [scene.encode(text, clip) for text in (TWO, NEGATIVE)]
        return scene.sample(model, *texts, **options)

    def expected(self, separation=0.0, **options):
        scene = self.scene
        rows = positive_only(self.slots, options.get("batch", 1))
        table = JointSeparation(rows, separation)
        texts = [scene.encode(text) for text in (PLAIN_TWO, NEGATIVE)]
        return scene.sample(table.on(scene.model), *texts, **options), table.maps


def recorded(model, preview=False, **texts):
    """By Record Maps."""
    family = registry.host_family_of(model).family
    return recording.record_maps(model, RecordPlan.from_text(**texts, family=family), preview)


@EACH
@pytest.mark.parametrize("masks", [(None, None), (LEFT, None), (LEFT, 1.0 - LEFT)])
def test_subjects_kept_apart_equal_the_value_table(family, masks):
    two = Two(family, masks)
    options = {"steps": 4, "batch": 2}
    found, (expected, _) = (each(1.0, **options) for each in (two.sampled, two.expected))
    mixed = two.sampled(0.0, **options)
    effect = float((mixed - expected).norm() / expected.norm())
    assert effect > 1e-4
    assert (found - expected).norm() / expected.norm() < min(1e-4, 0.02 * effect)
    assert torch.equal(mixed, two.sampled(**options))


@EACH
def test_maps_equal_the_attention_of_the_host(family):
    two = Two(family, weights=(2.0, 0.5))
    scene = two.scene
    plain = two.sampled(steps=1, batch=2)
    assert torch.equal(two.sampled(steps=1, batch=2, record={"preview": True}), plain)
    _, maps = two.expected(steps=1, batch=2)
    expected = {
        (site, row % 2 * scene.frames + frame, two.naive.index(subject)): shown[frame]
        for site, row, subject, shown in maps
        for frame in range(scene.frames)
    }
    assert len(two.record.maps) == len(expected) == 2 * 2 * len(scene.sites) * scene.frames
    for each in two.record.maps:
        known = expected[each.site.path, each.picture, ["<anna>", "<rex>"].index(each.token)]
        torch.testing.assert_close(each.attention.float(), known.float(), rtol=HALF, atol=1e-6)
        assert each.attention.shape == (5, 4)


@EACH
@pytest.mark.parametrize("show", pack.module("nested_core.maps").SHEETS)
def test_sheets_are_drawn(family, show):
    two = Two(family)
    latent = two.sampled(record={})
    image = torch.rand(1, 72, 56, 3, generator=torch.Generator().manual_seed(1))
    samples = {"samples": latent}
    sheet = pack.run("ShowMaps", record=two.record, samples=samples, show=show, image=image)
    assert sheet.ndim == 4
    assert sheet.std() > 0.01
    by_site = list(dict.fromkeys(each.site.path for each in two.record.maps))
    assert by_site == two.scene.sites


def test_sites_and_steps_are_chosen():
    two = Two("flux")
    two.sampled(record={"sites": "s, !s0", "steps": "last"})
    assert {(each.step, each.site.text) for each in two.record.maps} == {(1, "s1")}
    assert all(each.values is not None for each in two.record.maps)
