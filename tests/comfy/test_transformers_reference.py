"""The value table for diffusion transformers, and the tiny models that it is asked on."""

from __future__ import annotations

import dit_scene
import joint_value_table
import pytest
import reference
import torch
from dit_scene import NEGATIVE, PROMPT, TransformerScene
from scenes import relative_difference

TOLERANCE = 1e-5  # float64 against float32, over two steps
VISIBLE = 5e-4
SITES = {
    "flux": ["double.0", "double.1", "single.0", "single.1"],
    "chroma": ["double.0", "double.1", "single.0", "single.1"],
    "sd3": ["joint.0", "joint.1", "joint.2"],
    "qwen_image": ["blocks.0", "blocks.1", "blocks.2"],
    "lumina2": ["blocks.0", "blocks.1", "blocks.2"],
    "z_image": ["blocks.0", "blocks.1", "blocks.2"],
    "cosmos_predict2": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
    "anima": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
    "wan": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
}


@pytest.fixture(params=dit_scene.FAMILIES)
def scene(request: pytest.FixtureRequest) -> TransformerScene:
    return dit_scene.shared_scene(request.param)


@pytest.fixture
def prompts(scene):
    return scene.encode(PROMPT), scene.encode(NEGATIVE)


def slots_of(scene, subject, noun="woman"):
    return {row: subject for row in scene.rows(PROMPT, noun)}


def test_every_weight_is_drawn_and_text_is_seen(scene, prompts):
    for module in (scene.model.model.diffusion_model, scene.clip.cond_stage_model):
        for name, tensor in module.state_dict().items():
            tensor = tensor[:: 1 + len(tensor) // 5000] if tensor.ndim else tensor
            if tensor.is_floating_point():
                assert torch.isfinite(tensor).all(), name
                assert (tensor != 0).float().mean() > 0.99, name
    one, other = (scene.sample(scene.model, each, prompts[1], cfg=1.0) for each in prompts)
    assert torch.isfinite(one).all()
    assert relative_difference(one, other) > 0.01


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_without_a_bound_token_it_is_the_plain_model(scene, prompts, cfg):
    table = joint_value_table.JointValueTable(lambda options, rows: [{}] * rows)
    expected = scene.sample(scene.model, *prompts, cfg=cfg, batch=2)
    found = scene.sample(table.on(scene.model), *prompts, cfg=cfg, batch=2)
    assert relative_difference(found, expected) < TOLERANCE
    assert scene.sites == SITES[scene.family]
    calls = [site for site, *_ in table.calls]
    assert calls == SITES[scene.family] * (len(calls) // len(scene.sites))
    assert len(calls) >= scene.steps * len(scene.sites)


def test_text_value_in_its_own_place_changes_nothing(scene, prompts):
    same = scene.subject(value=lambda site, q, text: text[:, None].expand_as(q), scale=1.0)
    rows = reference.positive_only(slots_of(scene, same))
    expected = scene.sample(scene.model, *prompts)
    assert relative_difference(scene.sample_naively(rows, *prompts), expected) < TOLERANCE


@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_subject_is_seen(scene, prompts, mode):
    rows = reference.positive_only(slots_of(scene, scene.subject(mode=mode)))
    plain = scene.sample(scene.model, *prompts, cfg=1.0)
    found = scene.sample_naively(rows, *prompts, cfg=1.0)
    assert torch.isfinite(found).all()
    assert relative_difference(found, plain) > VISIBLE


def test_settings_act(scene, prompts):
    def sampled(*subjects):
        slots = {}
        for noun, subject in zip(("woman", "dog"), subjects, strict=False):
            slots.update(slots_of(scene, subject, noun))
        return scene.sample_naively(reference.positive_only(slots), *prompts, cfg=1.0)

    one = sampled(scene.subject())
    mask = torch.zeros(1, 36, 28)
    mask[:, :, 14:] = 1.0
    for other in (
        [scene.subject(strength=0.5)],
        [scene.subject(token_weight=3.0)],
        [scene.subject(mask=mask)],
        [scene.subject(scale=1.0)],
        [scene.subject(), scene.subject(seed=1)],
        [scene.subject(sites=lambda site: site == scene.sites[0])],
    ):
        assert relative_difference(sampled(*other), one) > VISIBLE / 10
    for nothing in (
        {"strength": 0.0},
        {"mask": torch.zeros(1, 36, 28), "token_weight": 3.0},
        {"window": (0.0, 0.0)},
    ):
        plain = scene.sample(scene.model, *prompts, cfg=1.0)
        assert relative_difference(sampled(scene.subject(**nothing)), plain) < TOLERANCE
