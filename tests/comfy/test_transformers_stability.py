"""What a diffusion transformer is like after many queues, after errors, and behind a compiler."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management
import comfy.sd
import comfy.utils
import pack
import pytest
import torch
import torch._dynamo
from bound_transformers import (
    PLAIN,
    TEXT,
    apply,
    assert_equal,
    bind,
    make_encoder,
    make_subject,
)
from compiled import as_compiled
from dit_scene import FAMILIES, NEGATIVE, make_scene, shared_scene

model_call = pack.module("nodes.bridge.families.model_call")
patches = pack.module("nodes.bridge.families.transformer_patches")

BLOCKS = ("double_blocks", "joint_blocks", "transformer_blocks", "layers", "blocks")


def texts(scene, clip):
    return scene.encode(TEXT, clip), scene.encode(NEGATIVE, clip)


def plain(scene, **options):
    return scene.sample(scene.model, scene.encode(PLAIN), scene.encode(NEGATIVE), **options)


def left_in_memory():
    """What a call of a model puts up for itself."""
    gc.collect()
    kinds = (patches.Override, patches.BlockMark, patches.TransformerCall)
    return sum(type(each) in kinds for each in gc.get_objects())


@pytest.mark.parametrize(("family", "queues"), [("flux", 100), ("sd3", 10), ("wan", 10)])
def test_many_queues_give_the_same_picture_and_grow_nothing(family, queues):
    scene = shared_scene(family)
    before = plain(scene, steps=1)
    subject = make_subject(make_encoder(scene))
    first, options = None, set()
    for nth in range(queues):
        model, clip = apply(scene, bind(subject))
        found = scene.sample(model, *texts(scene, clip), steps=1)
        first = found if first is None else first
        assert torch.equal(found, first), nth
        transformer = model.model_options["transformer_options"]
        options.add((str(sorted(transformer)), len(model.get_additional_models())))
    assert len(options) == 1
    assert left_in_memory() == 0
    assert torch.equal(plain(scene, steps=1), before)
    assert (first - before).norm() / before.norm() > 1e-3


class BlockError(RuntimeError):
    """Of something in the middle of the model."""


def a_block(scene):
    model = scene.model.model.diffusion_model
    return next(getattr(model, name) for name in BLOCKS if hasattr(model, name))[1]


INTERRUPTION = comfy.model_management.InterruptProcessingException


@pytest.mark.parametrize(
    ("family", "fault"), [*((each, BlockError) for each in FAMILIES), ("sd3", INTERRUPTION)]
)
def test_after_an_exception_in_the_middle_nothing_is_left(family, fault):
    scene = shared_scene(family)
    before = plain(scene)
    model, clip = apply(scene, bind(make_subject(make_encoder(scene))))
    expected = scene.sample(model, *texts(scene, clip))
    seen = []

    def fail(*_):
        seen.append(weakref.ref(model_call.current_call.get()))
        raise fault

    hook = a_block(scene).register_forward_hook(fail)
    try:
        with pytest.raises(fault):
            scene.sample(model, *texts(scene, clip))
    finally:
        hook.remove()
    assert len(seen) == 1
    assert model_call.current_call.get() is None
    gc.collect()
    assert seen[0]() is None
    assert torch.equal(plain(scene), before)
    assert torch.equal(scene.sample(model, *texts(scene, clip)), expected)


@pytest.mark.parametrize("family", ["flux", "sd3", "wan"])
def test_a_saved_model_is_the_plain_one(family, tmp_path):
    """Save Checkpoint behind Apply writes what the model is without the subjects."""
    scene = shared_scene(family)
    model, clip = apply(scene, bind(make_subject(make_encoder(scene))))
    scene.sample(model, *texts(scene, clip), steps=1)
    files = []
    for name, each in (("bound", model), ("plain", scene.model)):
        path = str(tmp_path / f"{name}.safetensors")
        comfy.sd.save_checkpoint(path, each, metadata={})
        files.append(comfy.utils.load_torch_file(path, safe_load=True))
    bound, plain = files
    assert list(bound) == list(plain)
    assert len(plain) > 10
    for name, tensor in plain.items():
        assert torch.equal(bound[name], tensor), name


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("family", "place", "unet"),
    [
        ("flux", "behind", {"depth": 1, "depth_single_blocks": 1}),
        ("sd3", "before", {"num_blocks": 2}),
        ("wan", "behind", {"num_layers": 2}),
    ],
)
def test_a_compiled_model_is_right_whatever_was_traced_before(family, place, unet, compiler):
    scene = make_scene(family, **unet)
    encoder = make_encoder(scene)
    mask = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(2))
    found, expected = [], []
    for binding, text in (
        (bind(make_subject(encoder)), PLAIN),
        (bind(make_subject(encoder)), TEXT),
        (bind(make_subject(encoder, 3), mask=mask), TEXT),
    ):
        model, clip = apply(scene, binding)
        conditionings = scene.encode(text, clip), scene.encode(NEGATIVE, clip)
        options = {"cfg": 1.0, "steps": 1}
        expected.append(scene.sample(model, *conditionings, **options))
        if place == "behind":
            compiled = as_compiled(model)
        else:
            compiled, _ = apply(scene, binding, model=as_compiled(scene.model))
        found.append(scene.sample(compiled, *conditionings, **options))
    for each, other in zip(found, expected, strict=True):
        assert_equal(each, other)
    assert (expected[0] - expected[1]).norm() / expected[0].norm() > 1e-3
    assert (expected[2] - expected[1]).norm() / expected[1].norm() > 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
