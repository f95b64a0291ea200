"""A sampler that draws a part of the picture, with masks of the whole."""

from __future__ import annotations

import composition
import pack
import pytest
import torch

HostError = pack.module("nested_core.errors").HostError


def conditionings(scene, clip):
    return scene.encode(clip, composition.PROMPT), scene.encode(clip, composition.NEGATIVE)


def test_the_part_is_drawn_as_with_its_part_of_the_mask(sd15):
    mask = torch.rand(1, 64, 48, generator=torch.Generator().manual_seed(3))
    region = torch.zeros(1, 128, 96)
    region[:, 32:96, 0:48] = 1.0
    subject = sd15.subject()
    whole, clip = sd15.apply(sd15.bind(subject, mask=mask), separation=0.3)
    found = pack.run("CropMasks", model=whole, region=region)
    expected, _ = sd15.apply(sd15.bind(subject, mask=mask[:, 16:48, 0:24]), separation=0.3)
    positive, negative = conditionings(sd15, clip)
    drawn = sd15.sample(found, positive, negative)
    assert torch.equal(drawn, sd15.sample(expected, positive, negative))
    assert not torch.equal(drawn, sd15.sample(whole, positive, negative))


def test_the_model_that_comes_in_is_left_alone(sd15):
    whole, clip = sd15.apply(sd15.bind(mask=torch.rand(1, 8, 8)))
    positive, negative = conditionings(sd15, clip)
    before = sd15.sample(whole, positive, negative)
    pack.run("CropMasks", model=whole, region=torch.ones(1, 4, 4), padding=1)
    assert torch.equal(sd15.sample(whole, positive, negative), before)


def test_a_model_without_subjects_is_refused(sd15):
    with pytest.raises(HostError, match=r"no subjects.*Connect the MODEL of Apply"):
        pack.run("CropMasks", model=sd15.model, region=torch.ones(1, 4, 4))
