"""Nodes that ComfyUI brings and users put on a diffusion transformer, before or behind Apply."""

from __future__ import annotations

import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.qwen_image.controlnet
import comfy.ops
import comfy.samplers
import node_helpers
import pack
import pytest
import tiny_transformers
import torch
from bound_transformers import (
    PLAIN,
    TEXT,
    apply,
    assert_equal,
    bind,
    make_encoder,
    make_subject,
    naive,
)
from dit_scene import NEGATIVE, make_scene, shared_scene
from each_family import EACH
from joint_composition import assert_composes, rows_reading, sample_naive
from joint_value_table import JointValueTable


def by_node(name, extra, **inputs):
    return lambda model: pack.run_host(name, extra, model=model, **inputs)


# What changes guidance and sampling, in all families at once.
NODES = [
    by_node("NAGuidance", "nodes_nag", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    by_node("APG", "nodes_apg", eta=0.5, norm_threshold=5.0, momentum=0.1),
    by_node("CFGZeroStar", "nodes_cfg"),
    by_node("PerturbedAttentionGuidance", "nodes_pag", scale=3.0),
    by_node("RescaleCFG", "nodes_model_advanced", multiplier=0.7),
]
SHIFTED = {
    "flux": by_node(
        "ModelSamplingFlux",
        "nodes_model_advanced",
        max_shift=1.15,
        base_shift=0.5,
        width=512,
        height=512,
    ),
    "chroma": by_node("ModelSamplingAuraFlow", "nodes_model_advanced", shift=1.9),
}
SHIFT = by_node("ModelSamplingSD3", "nodes_model_advanced", shift=6.0)
SKIP = by_node(
    "SkipLayerGuidanceSD3",
    "nodes_sd3",
    layers="1",
    scale=3.0,
    start_percent=0.0,
    end_percent=1.0,
)
CACHES = [
    by_node(
        name,
        "nodes_easycache",
        reuse_threshold=3.0,
        start_percent=0.0,
        end_percent=1.0,
        verbose=False,
    )
    for name in ("EasyCache", "LazyCache")
]


def in_turn(*alterations):
    def alter(model):
        for each in alterations:
            model = each(model)
        return model

    return alter


@EACH
def test_guidance_and_sampling_nodes_together_compose(family):
    steps = NODES if family != "sd3" else [*NODES, SKIP]
    alter = in_turn(*steps, SHIFTED.get(family, SHIFT))
    assert_composes(shared_scene(family), alter, batch=2)


@EACH
@pytest.mark.parametrize("cache", CACHES)
def test_where_steps_are_left_out_the_others_have_the_subject(family, cache):
    acts = family != "sd3"  # for which ComfyUI asks no wrapper of the transformer
    assert_composes(shared_scene(family), cache, acts=acts or cache is CACHES[1], steps=6)


def with_other_weights(model):
    """As of a LoRA: kept beside the weights until they are loaded."""
    clone = model.clone()
    names = [
        name
        for name, each in model.model.named_parameters()
        if each.ndim == 2 and len(each) > 8 and "llm_adapter" not in name
    ]
    generator = torch.Generator().manual_seed(8)
    weights = dict(model.model.named_parameters())
    patches = {
        name: (0.1 * torch.randn(weights[name].shape, generator=generator),) for name in names
    }
    assert len(clone.add_patches(patches, 1.0)) == len(names)
    return clone


@EACH
def test_loras_compose(family):
    assert_composes(shared_scene(family), with_other_weights)


def test_a_lora_of_the_text_encoder_composes():
    scene = shared_scene("chroma")
    subject = make_subject(make_encoder(scene))
    clip = scene.clip.clone()
    name = next(
        n for n in clip.cond_stage_model.state_dict() if n.endswith("SelfAttention.v.weight")
    )
    shape = clip.cond_stage_model.state_dict()[name].shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    assert clip.add_patches({name: (change,)}, 1.0)
    model, bound = pack.run(
        "Apply", model=scene.model, clip=clip, bindings={"binding_0": bind(subject)}
    )
    found = scene.sample(model, scene.encode(TEXT, bound), scene.encode(NEGATIVE, bound))

    def encoded_anew(*_):
        return scene.encode(PLAIN, clip), scene.encode(NEGATIVE, clip)

    changed = encoded_anew()[0]
    slots = dict.fromkeys(scene.rows(PLAIN, "woman"), naive(subject))
    table = JointValueTable(rows_reading([(scene.context(changed), slots)])).on(scene.model)
    assert_equal(
        found, scene.sample(table, *encoded_anew()), scene.sample(scene.model, *encoded_anew())
    )


# ---- ControlNets, and patches that add to the picture's activations


def flux_control():
    """InstantX's union kind, with a mode."""
    sizes = {**tiny_transformers.FAMILIES["flux"].unet, "depth": 2, "depth_single_blocks": 1}
    model = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=True,
        num_union_modes=3,
        control_latent_channels=16,
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
        **sizes,
    )
    return model, comfy.latent_formats.Flux(), ["y", "guidance"]


class Vae:
    """Of one pixel for each cell of the latent."""

    def __init__(self, has_frames):
        self.shape = (-1, 16, 1, 9, 7) if has_frames else (-1, 16, 9, 7)

    def spacial_compression_encode(self):
        return 1

    def encode(self, image_bhwc):
        return image_bhwc.mean(-1)[:, None].repeat(1, 16, 1, 1).view(self.shape)


def qwen_control():
    sizes = {**tiny_transformers.FAMILIES["qwen_image"].unet, "num_layers": 2}
    model = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(
        operations=comfy.ops.disable_weight_init, dtype=torch.float32, **sizes
    )
    return model, comfy.latent_formats.Wan21(), []


@pytest.mark.parametrize(("family", "make"), [("flux", flux_control), ("qwen_image", qwen_control)])
def test_control_nets_compose(family, make):
    model, latent_format, conds = make()
    tiny_transformers.randomise(model, 4)
    control = comfy.controlnet.ControlNet(
        model,
        compression_ratio=1,
        latent_format=latent_format,
        load_device=torch.device("cpu"),
        extra_conds=conds,
    )
    if family == "flux":
        control.set_extra_arg("control_type", [1])
    hint = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(2))
    own = control.copy().set_cond_hint(hint, 0.8, (0.0, 1.0), vae=Vae(family == "qwen_image"))

    def controlled(*both):
        values = {"control": own, "control_apply_to_uncond": False}
        return [node_helpers.conditioning_set_values(each, values) for each in both]

    scene = shared_scene(family)
    assert_composes(scene, prepare=controlled, places=["behind"], acts=False, batch=2)
    subject = make_subject(make_encoder(scene))
    with_it, without = (
        sample_naive(scene, subject, prepare=each, batch=2)
        for each in (controlled, lambda *both: both)
    )
    assert (with_it - without).norm() / without.norm() > 1e-3


def add_to_the_picture(arguments):
    """As model patches of Z-Image and Qwen-Image do, and those of other packs."""
    arguments["img"] = arguments["img"] * 1.1
    return arguments


@pytest.mark.parametrize("family", ["qwen_image", "lumina2", "z_image", "wan"])
def test_patches_of_blocks_compose(family):
    def alter(model):
        model = model.clone()
        model.set_model_patch(add_to_the_picture, "double_block")
        return model

    assert_composes(shared_scene(family), alter)


def test_what_is_kept_of_reference_pictures_composes():
    """FluxKVCache: in later steps keys are more than queries."""
    scene = shared_scene("qwen_image")
    node = by_node("FluxKVCache", "nodes_flux")

    def with_picture(*both):
        samples = torch.randn(1, 16, 1, 6, 5, generator=torch.Generator().manual_seed(2))
        return [
            pack.run_host(
                "ReferenceLatent", "nodes_edit_model", conditioning=c, latent={"samples": samples}
            )
            for c in both
        ]

    assert_composes(scene, node, with_picture, cfg=1.0, steps=3)


# ---- how weights are kept


class Packed(comfy.ops.manual_cast):
    """Layers that keep their weights as something else, and write them out when they are called."""

    class Linear(comfy.ops.manual_cast.Linear):
        def pack(self):
            self.scale = self.weight.abs().amax() / 127
            packed = (self.weight / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(packed, requires_grad=False)

        def forward_comfy_cast_weights(self, x):
            weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return torch.nn.functional.linear(x, weight, bias)

        forward = forward_comfy_cast_weights


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen_image", "z_image", "anima", "wan"])
@pytest.mark.parametrize("kept", ["fp8", "packed"])
def test_weights_that_are_written_out_when_used_compose(family, kept):
    settings = {"fp8": {"weights": torch.float8_e4m3fn}, "packed": {"operations": Packed}}[kept]
    scene = make_scene(family, **settings)
    if kept == "packed":
        layers = [each for each in scene.model.model.modules() if isinstance(each, Packed.Linear)]
        assert layers
        for each in layers:
            each.pack()
    assert_composes(scene, places=["behind"], acts=False)


# ---- several models


@EACH
def test_apply_twice_is_apply_with_both_and_clones_know_nothing_of_each_other(family):
    scene = shared_scene(family)
    anna = make_subject(make_encoder(scene))
    rex = make_subject(make_encoder(scene, "all_heads", 1.3, seed=8), 3)
    bindings = bind(anna), bind(rex, "<rex>", "dog")
    text = "a pencil drawing of <anna> with <rex> in a coffee shop"

    def sampled(model, clip):
        return scene.sample(model, scene.encode(text, clip), scene.encode(NEGATIVE, clip))

    def plain():
        texts = "a pencil drawing of woman with dog in a coffee shop", NEGATIVE
        return scene.sample(scene.model, *map(scene.encode, texts))

    before = plain()
    both = apply(scene, *bindings)
    first = apply(scene, bindings[0])
    second = pack.run("Apply", model=first[0], clip=first[1], bindings={"binding_0": bindings[1]})
    alone = apply(scene, bindings[1])
    expected = sampled(*both)
    of_rex = sampled(*alone)
    of_anna = sampled(*first)
    assert torch.equal(sampled(*second), expected)
    assert torch.equal(plain(), before)
    assert torch.equal(sampled(*alone), of_rex)
    assert torch.equal(sampled(*first), of_anna)
    pictures = [before, expected, of_rex, of_anna]
    for nth, each in enumerate(pictures):
        for other in pictures[:nth]:
            assert (each - other).norm() / other.norm() > 1e-4
