"""The multi-GPU nodes. The second device is the processor once more, under its other name: ComfyUI
keeps a copy of every model for it and runs it in a thread of its own, as it does for a second GPU."""

from __future__ import annotations

import comfy.model_management
import composition
import model_files
import pack
import pytest
import scenes
import tiny
import torch

kv_cache = pack.module("nodes.bridge.model.kv_cache")

FIRST, SECOND = torch.device("cpu"), torch.device("cpu:0")
_NEGATIVE = "no <anna>"  # so that either device has a row with the subject


@pytest.fixture
def loaded(monkeypatch):
    """A scene whose model a stock loader read from a file: only such a model can be copied."""
    model_files.make_detectable(monkeypatch, "sd15")
    weights = tiny.unet("sd15").model.diffusion_model.state_dict()
    name = model_files.write("diffusion_models", "tiny_sd15", weights)
    model = pack.run_host("UNETLoader", unet_name=name, weight_dtype="default")
    return scenes.Scene(
        "sd15", model, tiny.clip("sd15"), tiny.clip_vision(), scenes.make_encoder("sd15", model)
    )


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(
        comfy.model_management,
        "get_all_torch_devices",
        lambda exclude_current=False: [FIRST, SECOND],
    )


def _split(model):
    return pack.run_host("MultiGPU_WorkUnits", extra="nodes_multigpu", model=model, max_gpus=2)


def _devices_at_work(model):
    """A clone of the model, and the set that it fills with the devices that ran it."""
    devices = set()

    def watch(executor, x, t, c_concat, c_crossattn, control, options, **extra):
        devices.add(options.get("multigpu_thread_device"))
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "watch", watch)
    return model, devices


def _sample(scene, model, clip, prompt=composition.PROMPT):
    return scene.sample(model, scene.encode(clip, prompt), scene.encode(clip, _NEGATIVE), batch=2)


def _bound(scene, place, *bindings, **inputs):
    before = _split(scene.model) if place == "before" else None
    model, clip = scene.apply(*bindings, model=before, **inputs)
    return (_split(model) if place == "behind" else model), clip


@composition.CASTS
@pytest.mark.parametrize("place", composition.PLACES)
def test_two_devices_do_what_one_does(loaded, two_devices, place, cast):
    masked = {"mask": torch.rand(1, 9, 7), "token_weight": 2.0}
    bindings = composition.bindings(loaded, loaded.subject(), cast, **masked)
    model, clip = loaded.apply(*bindings, separation=cast.separation)
    alone = _sample(loaded, model, clip, cast.prompt)
    split, _ = _bound(loaded, place, *bindings, separation=cast.separation)
    model, devices = _devices_at_work(split)
    together = _sample(loaded, model, clip, cast.prompt)
    assert devices == {FIRST, SECOND}
    assert scenes.relative_difference(together, alone) < 1e-5
    plain = _sample(loaded, loaded.model, clip, cast.prompt)
    assert scenes.relative_difference(plain, alone) > composition.VISIBLE


@pytest.mark.parametrize("place", composition.PLACES)
def test_every_device_has_keys_and_values_of_its_own(loaded, two_devices, place):
    model, clip = _bound(loaded, place, loaded.bind())
    _sample(loaded, model, clip)
    (copy,) = model.get_additional_models_with_key("multigpu")
    (first,) = model.get_additional_models_with_key("nested_attention")
    (second,) = copy.get_additional_models_with_key("nested_attention")
    assert (first.load_device, second.load_device) == (FIRST, SECOND)
    assert first.model is not second.model
    assert first.model.identity == second.model.identity
    for site, one in first.model.by_site.items():
        other = second.model.by_site[site]
        assert one.key is not other.key
        assert torch.equal(one.key, other.key)
        assert torch.equal(one.value, other.value)


def test_a_second_queue_copies_nothing(loaded, two_devices, monkeypatch):
    model, clip = _bound(loaded, "behind", loaded.bind())
    first = _sample(loaded, model, clip)
    monkeypatch.setattr(kv_cache.copy, "deepcopy", None)
    assert torch.equal(_sample(loaded, model, clip), first)


def test_another_subject_on_a_model_that_is_split_already(loaded, two_devices):
    anna, rex = loaded.subject(0), loaded.subject(1)
    split, clip = _bound(loaded, "behind", loaded.bind(anna))
    _sample(loaded, split, clip)
    model, clip = loaded.apply(loaded.bind(rex), model=split)
    found = _sample(loaded, model, clip)
    expected = _sample(loaded, *loaded.apply(loaded.bind(rex)))
    assert scenes.relative_difference(found, expected) < 1e-5


def test_a_prompt_without_the_subject_between_two_with_it(loaded, two_devices):
    model, clip = _bound(loaded, "behind", loaded.bind())
    first = _sample(loaded, model, clip)
    loaded.sample(model, loaded.encode(clip, "a cat"), loaded.encode(clip, "blurry"))
    assert torch.equal(_sample(loaded, model, clip), first)


def test_one_device_alone_is_untouched_by_the_node(loaded):
    binding = loaded.bind()
    alone = _sample(loaded, *loaded.apply(binding))
    split, clip = _bound(loaded, "behind", binding)
    assert torch.equal(_sample(loaded, split, clip), alone)


def test_a_deep_clone_has_the_bindings(loaded):
    """As Select Model Device makes it, before and behind the first sampling."""
    model, clip = loaded.apply(loaded.bind())
    expected = None
    for _ in range(2):
        copy = model.deepclone_multigpu(SECOND)
        assert copy.model is not model.model
        found = _sample(loaded, copy, clip)
        expected = _sample(loaded, model, clip)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("device", ["default", "cpu"])
def test_select_model_device_composes(loaded, device):
    def alter(model):
        return pack.run_host(
            "SelectModelDevice", extra="nodes_multigpu", model=model, device=device
        )

    composition.assert_composes(loaded, alter, acts=False)


def test_an_encoder_can_be_copied_for_a_device(sd15):
    patcher = kv_cache.encoder_patcher(sd15.encoder)
    copy = patcher.deepclone_multigpu(SECOND)
    assert copy.model is not sd15.encoder
    assert copy.load_device == SECOND
    assert kv_cache.encoder_patcher(sd15.encoder) is patcher
    assert kv_cache.encoder_patcher(copy.model) is not patcher
    for name, tensor in sd15.encoder.state_dict().items():
        assert torch.equal(copy.model.state_dict()[name], tensor), name
