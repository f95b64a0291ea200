"""What is under ComfyUI's memory management, and in which mode tensors are made and moved."""

from __future__ import annotations

import comfy.model_management
import pack
import scenes
import torch
from comfy.model_patcher import ModelPatcher

kv_cache = pack.module("nodes.bridge.model.kv_cache")


def _loads(monkeypatch):
    """Every call that asks ComfyUI to load models, and whether inference mode was on."""
    seen = []
    load = comfy.model_management.load_models_gpu

    def observed(models, *args, **kwargs):
        seen.append(([type(m.model).__name__ for m in models], torch.is_inference_mode_enabled()))
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", observed)
    return seen


def _sample(scene):
    model, clip = scene.apply(scene.bind())
    return scene.sample(model, scene.encode(clip, "<anna>"), scene.encode(clip, ""))


def test_encoder_and_keys_and_values_are_plain_model_patchers(sdxl):
    subject = sdxl.subject()
    patcher = kv_cache.keys_and_values(subject, sdxl.sites, torch.device("cpu"), torch.float32)
    for each in (patcher, kv_cache.encoder_patcher(sdxl.encoder)):
        assert type(each) is ModelPatcher
        assert each.cached_patcher_init is not None
    tokens, widths = len(subject.tokens), kv_cache.encoder_patcher(sdxl.encoder).model.site_dims
    assert patcher.model_size() == 2 * 4 * tokens * sum(widths.values())


def test_comfyui_loads_what_sampling_needs_with_the_model(sdxl, monkeypatch):
    seen = _loads(monkeypatch)
    _sample(sdxl)
    assert any({"SDXL", "SubjectKeysValues"} <= set(names) for names, _ in seen)
    assert any("Encoder" in names for names, _ in seen)


def test_models_move_in_the_mode_that_nodes_run_in(sdxl, monkeypatch):
    # A tensor made in inference mode cannot be moved outside it; on one device nothing would show.
    seen = _loads(monkeypatch)
    _sample(sdxl)
    assert all(inference for _, inference in seen)


def test_keys_and_values_work_outside_inference_mode_too():
    with torch.inference_mode(False), torch.no_grad():
        scene = scenes.make_scene("sdxl")
        outside = _sample(scene)
    patcher = kv_cache.keys_and_values(
        scene.subject(), scene.sites, torch.device("cpu"), torch.float32
    )
    assert not any(parameter.is_inference() for parameter in patcher.model.parameters())
    assert scenes.relative_difference(_sample(scene), outside) < 1e-6


def test_keys_and_values_are_kept_in_the_models_precision():
    scene = scenes.make_scene("sdxl", torch.bfloat16)
    _sample(scene)
    subject = scene.subject()
    patcher = kv_cache.keys_and_values(subject, scene.sites, torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in patcher.model.parameters()} == {torch.bfloat16}
