"""ControlNets and T2I adapters beside a subject: real files through the real loader."""

from __future__ import annotations

import composition
import model_files
import pack
import pytest
import scenes
import tiny
import torch
from comfy.t2i_adapter.adapter import Adapter

# SD1.5's own layout, 32 channels wide: a T2I adapter meets it at every third input block.
SD15_LAYOUT = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}


def _picture(scene):
    generator = torch.Generator().manual_seed(8)
    return torch.rand(1, scene.height * 8, scene.width * 8, 3, generator=generator)


def _controlled(scene, *controls, **inputs):
    """Conditionings behind one real apply node for each control."""
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **inputs}

    def prepare(positive, negative):
        for control in controls:
            positive, negative = pack.run_host(
                "ControlNetApplyAdvanced",
                positive=positive,
                negative=negative,
                control_net=control,
                image=_picture(scene),
                **settings,
            )
        return positive, negative

    return prepare


def _load_control_net(monkeypatch, family):
    model_files.make_detectable(monkeypatch, family)
    weights = tiny.control_net(family).control_model.state_dict()
    name = model_files.write("controlnet", f"tiny_{family}", weights)
    return pack.run_host("ControlNetLoader", control_net_name=name)


def _load_t2i_adapter():
    adapter = Adapter(
        cin=192, channels=[32, 64, 128, 128], nums_rb=2, ksize=1, sk=True, use_conv=False, xl=False
    )
    tiny.randomise(adapter, 12)
    name = model_files.write("controlnet", "tiny_t2i", adapter.state_dict())
    return pack.run_host("ControlNetLoader", control_net_name=name)


@pytest.mark.smoke
def test_a_control_net_composes(scene, family, monkeypatch):
    control = _load_control_net(monkeypatch, family)
    composition.assert_composes(
        scene, prepare=_controlled(scene, control), places=["behind"], batch=2
    )


def test_a_control_net_for_part_of_the_steps_composes(sd15, monkeypatch):
    control = _load_control_net(monkeypatch, "sd15")
    prepare = _controlled(sd15, control, strength=0.7, start_percent=0.2, end_percent=0.6)
    composition.assert_composes(sd15, prepare=prepare, places=["behind"], steps=6)


def test_a_control_net_that_only_the_positive_prompt_has_composes(sd15, monkeypatch):
    control = _load_control_net(monkeypatch, "sd15")

    def prepare(positive, negative):
        return _controlled(sd15, control)(positive, negative)[0], negative

    composition.assert_composes(sd15, prepare=prepare, places=["behind"])


def test_a_control_net_reads_the_same_text_as_without_a_subject(sd15, monkeypatch):
    """It gets the context as it is; nothing of ours fires inside it."""
    control = _load_control_net(monkeypatch, "sd15")
    seen = []
    forward = type(control.control_model).forward
    monkeypatch.setattr(
        type(control.control_model),
        "forward",
        lambda self, **inputs: seen.append(inputs) or forward(self, **inputs),
    )
    subject, prepare = sd15.subject(), _controlled(sd15, control)
    composition.sample_bound(sd15, subject, prepare=prepare, steps=1)
    composition.sample_naive(sd15, None, prepare=prepare, steps=1)
    bound, plain = seen
    assert bound.keys() == plain.keys()
    assert torch.equal(bound["context"], plain["context"])


def test_a_t2i_adapter_composes():
    scene = scenes.make_scene_of("sd15", **SD15_LAYOUT)
    scene.width = 16
    adapter = _load_t2i_adapter()
    assert type(adapter).__name__ == "T2IAdapter"
    composition.assert_composes(scene, prepare=_controlled(scene, adapter), places=["behind"])


def test_two_control_nets_in_a_row_compose(sd15, monkeypatch):
    first = _load_control_net(monkeypatch, "sd15")
    second = tiny.control_net("sd15", seed=13)
    prepare = _controlled(sd15, first, second, strength=0.5)
    composition.assert_composes(sd15, prepare=prepare, places=["behind"])
