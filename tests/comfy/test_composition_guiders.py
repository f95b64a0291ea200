"""Guiders, and nodes that bring a prompt of their own, beside a subject."""

from __future__ import annotations

import composition
import pack
import pytest
import scenes
import tiny
import torch

_SAMPLER = "nodes_custom_sampler"


def _run_guider(scene, make_guider):
    """Sampling by the real SamplerCustomAdvanced."""

    def run(model, positive, negative, cfg=4.0, steps=3):
        sampler = pack.run_host("KSamplerSelect", extra=_SAMPLER, sampler_name="euler")
        sigmas = pack.run_host(
            "BasicScheduler",
            extra=_SAMPLER,
            model=model,
            scheduler="normal",
            steps=steps,
            denoise=1.0,
        )
        noise = pack.run_host("RandomNoise", extra=_SAMPLER, noise_seed=3)
        latent = {"samples": torch.zeros(2, 4, scene.height, scene.width)}
        samples, _ = pack.run_host(
            "SamplerCustomAdvanced",
            extra=_SAMPLER,
            noise=noise,
            guider=make_guider(model, positive, negative, cfg),
            sampler=sampler,
            sigmas=sigmas,
            latent_image=latent,
        )
        return samples["samples"]

    return run


def _encode(scene, text):
    return scene.encode(scene.clip, text)


def _perp_neg(scene):
    def make(model, positive, negative, cfg):
        return pack.run_host(
            "PerpNegGuider",
            extra="nodes_perpneg",
            model=model,
            positive=positive,
            negative=negative,
            empty_conditioning=_encode(scene, ""),
            cfg=cfg,
            neg_scale=1.0,
        )

    return make


def _cfg(scene):
    def make(model, positive, negative, cfg):
        return pack.run_host(
            "CFGGuider", extra=_SAMPLER, model=model, positive=positive, negative=negative, cfg=cfg
        )

    return make


def _basic(scene):
    def make(model, positive, negative, cfg):
        return pack.run_host("BasicGuider", extra=_SAMPLER, model=model, conditioning=positive)

    return make


def _dual_cfg(scene):
    def make(model, positive, negative, cfg):
        return pack.run_host(
            "DualCFGGuider",
            extra=_SAMPLER,
            model=model,
            cond1=positive,
            cond2=_encode(scene, "a coffee shop"),
            negative=negative,
            cfg_conds=cfg,
            cfg_cond2_negative=3.0,
            style="regular",
        )

    return make


def _dual_model(scene):
    """The negative prompt on another checkpoint, to which nothing was applied."""
    other = tiny.unet(scene.family, seed=77)

    def make(model, positive, negative, cfg):
        return pack.run_host(
            "DualModelGuider",
            extra=_SAMPLER,
            model=model,
            model_negative=other,
            positive=positive,
            negative=negative,
            cfg=cfg,
        )

    return make


GUIDERS = {
    "PerpNegGuider": _perp_neg,
    "CFGGuider": _cfg,
    "BasicGuider": _basic,
    "DualCFGGuider": _dual_cfg,
    "DualModelGuider": _dual_model,
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_a_guider_composes(sd15, guider):
    run = _run_guider(sd15, GUIDERS[guider](sd15))
    composition.assert_composes(sd15, places=["behind"], acts=False, run=run)


@pytest.mark.parametrize("cfg, neg_scale", [(1.0, 1.0), (4.0, 0.0)])
def test_perp_neg_composes_where_it_leaves_lists_out(sd15, cfg, neg_scale):
    def make(model, positive, negative, cfg):
        guider = _perp_neg(sd15)(model, positive, negative, cfg)
        guider.set_cfg(cfg, neg_scale)
        return guider

    run = _run_guider(sd15, make)
    composition.assert_composes(sd15, places=["behind"], acts=False, run=run, cfg=cfg)


def test_the_perp_neg_node_composes(scene):
    def alter(model):
        return pack.run_host(
            "PerpNeg",
            extra="nodes_perpneg",
            model=model,
            empty_conditioning=_encode(scene, ""),
            neg_scale=1.0,
        )

    composition.assert_composes(scene, alter)


def test_guiders_differ_from_each_other(sd15):
    """So that the tests above can fail: each guider does what the others don't."""
    subject = sd15.subject()
    results = [
        composition.sample_bound(sd15, subject, run=_run_guider(sd15, guider(sd15)))
        for guider in GUIDERS.values()
    ]
    for nth, result in enumerate(results):
        for other in results[nth + 1 :]:
            assert scenes.relative_difference(other, result) > composition.VISIBLE
