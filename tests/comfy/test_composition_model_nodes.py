"""Nodes that ComfyUI brings and users put on the same MODEL, before or behind Apply."""

from __future__ import annotations

import composition
import pack
import pytest
import scenes
import torch

# node id, the file that defines it, its inputs beside the model
GUIDANCE = [
    ("PerturbedAttentionGuidance", "nodes_pag", {"scale": 3.0}),
    ("SelfAttentionGuidance", "nodes_sag", {"scale": 0.5, "blur_sigma": 2.0}),
    ("RescaleCFG", "nodes_model_advanced", {"multiplier": 0.7}),
    (
        "SkipLayerGuidanceDiT",
        "nodes_slg",
        {
            "scale": 3.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "double_layers": "1",
            "rescaling_scale": 0.7,
        },
    ),
    ("APG", "nodes_apg", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.1}),
]
PATCHES = [
    ("FreeU_V2", "nodes_freelunch", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    (
        "HyperTile",
        "nodes_hypertile",
        {"tile_size": 32, "swap_size": 1, "max_depth": 2, "scale_depth": False},
    ),
    ("TomePatchModel", "nodes_tomesd", {"ratio": 0.5}),
    ("NAGuidance", "nodes_nag", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    (
        "PatchModelAddDownscale",
        "nodes_model_downscale",
        {
            "block_number": 1,
            "downscale_factor": 2.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "downscale_after_skip": True,
            "downscale_method": "bicubic",
            "upscale_method": "bicubic",
        },
    ),
    (
        "UNetCrossAttentionMultiply",
        "nodes_attention_multiply",
        {"q": 1.2, "k": 0.9, "v": 1.1, "out": 0.8},
    ),
]
# There a UNet has no layers to skip, but the node calls the model with lists that are missing.
IDLE = [
    (
        "SkipLayerGuidanceDiTSimple",
        "nodes_slg",
        {"start_percent": 0.0, "end_percent": 1.0, "double_layers": "1", "single_layers": "1"},
    ),
]


def _alter(name, extra, inputs):
    return lambda model: pack.run_host(name, extra=extra, model=model, **inputs)


def _ids(nodes):
    return [name for name, *_ in nodes]


@pytest.mark.parametrize("node", GUIDANCE, ids=_ids(GUIDANCE))
def test_guidance_composes(sd15, node):
    composition.assert_composes(sd15, _alter(*node))


@pytest.mark.parametrize("node", PATCHES, ids=_ids(PATCHES))
def test_patches_of_other_layers_compose(sd15, node):
    sd15.height, sd15.width = 16, 16
    composition.assert_composes(sd15, _alter(*node), batch=2)


@pytest.mark.parametrize("node", IDLE, ids=_ids(IDLE))
def test_nodes_that_only_call_the_model_differently_compose(sd15, node):
    composition.assert_composes(sd15, _alter(*node), acts=False)


@pytest.mark.smoke
def test_guidance_and_patches_together_compose(sdxl):
    def alter(model):
        for name, extra, inputs in (GUIDANCE[0], GUIDANCE[1], PATCHES[0]):
            model = pack.run_host(name, extra=extra, model=model, **inputs)
        return model

    composition.assert_composes(sdxl, alter, batch=2)


def test_a_mask_follows_a_node_that_shrinks_the_activations(sd15):
    shrink = next(node for node in PATCHES if node[0] == "PatchModelAddDownscale")
    mask = torch.rand(1, 32, 24, generator=torch.Generator().manual_seed(4))
    masked = {"mask": mask}
    composition.assert_composes(sd15, _alter(*shrink), binding=masked, settings=masked)


# Of each, the first step that acts lies outside the part of the schedule that the host's own sampling
# would give, or the other way round.
SAMPLING = [
    ("ModelSamplingDiscrete", "nodes_model_advanced", {"sampling": "v_prediction", "zsnr": True}),
    (
        "ModelSamplingContinuousEDM",
        "nodes_model_advanced",
        {"sampling": "eps", "sigma_max": 3.0, "sigma_min": 0.1},
    ),
]


@pytest.mark.parametrize("place", composition.PLACES)
@pytest.mark.parametrize("node", SAMPLING, ids=lambda node: node[2]["sampling"])
def test_percents_are_those_of_the_sampling_that_runs(sd15, node, place):
    alter = _alter(*node)
    percents = {"start_percent": 0.1, "end_percent": 0.6}
    own, host = (
        tuple(
            model.get_model_object("model_sampling").percent_to_sigma(p) for p in percents.values()
        )
        for model in (alter(sd15.model), sd15.model)
    )
    subject = sd15.subject()
    found = composition.sample_bound(sd15, subject, alter, place, binding=percents, steps=8)
    expected, wrong = (
        composition.sample_naive(sd15, subject, alter, settings={"window": window}, steps=8)
        for window in (own, host)
    )
    assert scenes.relative_difference(found, expected) < composition.TOLERANCE
    assert scenes.relative_difference(wrong, expected) > composition.VISIBLE
