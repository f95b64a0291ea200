"""Inpainting with a subject: noise masks, and models that see the masked picture."""

from __future__ import annotations

import composition
import pack
import pytest
import scenes
import tiny
import torch


def _pixels(scene, batch=1):
    generator = torch.Generator().manual_seed(21)
    return torch.rand(batch, scene.height * 8, scene.width * 8, 3, generator=generator)


def _right_half(scene):
    mask = torch.zeros(1, scene.height * 8, scene.width * 8)
    mask[..., scene.width * 4 :] = 1.0
    return mask


def _sampling(latent):
    return {"latent": latent["samples"], "noise_mask": latent["noise_mask"]}


@pytest.mark.smoke
def test_a_noise_mask_composes(scene):
    pixels, vae = _pixels(scene), tiny.vae()
    latent = pack.run_host("VAEEncode", pixels=pixels, vae=vae)
    latent = pack.run_host("SetLatentNoiseMask", samples=latent, mask=_right_half(scene))
    composition.assert_composes(scene, places=["behind"], acts=False, **_sampling(latent))


def test_a_noise_mask_leaves_the_picture_outside_it(sd15):
    """So that the test above can fail: the mask does act."""
    latent = pack.run_host("VAEEncode", pixels=_pixels(sd15), vae=tiny.vae())
    masked = pack.run_host("SetLatentNoiseMask", samples=latent, mask=_right_half(sd15))
    found = composition.sample_bound(sd15, sd15.subject(), **_sampling(masked))
    kept = slice(0, sd15.width // 2 - 1)
    assert scenes.relative_difference(found[..., kept], latent["samples"][..., kept]) < 1e-5


def test_vae_encode_for_inpaint_and_differential_diffusion_compose(sd15):
    latent = pack.run_host(
        "VAEEncodeForInpaint",
        vae=tiny.vae(),
        pixels=_pixels(sd15),
        mask=_right_half(sd15)[0] * torch.linspace(0.2, 1.0, sd15.width * 8),
        grow_mask_by=0,
    )

    def alter(model):
        return pack.run_host(
            "DifferentialDiffusion", extra="nodes_differential_diffusion", model=model
        )

    composition.assert_composes(sd15, alter, acts=False, **_sampling(latent))


@pytest.mark.parametrize("noise_mask", [True, False])
def test_an_inpaint_model_composes(noise_mask):
    scene = scenes.make_scene_of("sd15", in_channels=9)
    encoded = []

    def prepare(positive, negative):
        positive, negative, latent = pack.run_host(
            "InpaintModelConditioning",
            positive=positive,
            negative=negative,
            vae=tiny.vae(),
            pixels=_pixels(scene),
            mask=_right_half(scene),
            noise_mask=noise_mask,
        )
        encoded.append(latent)
        return positive, negative

    def run(model, positive, negative):
        latent = (
            encoded[-1] if encoded else {"samples": torch.zeros(1, 4, scene.height, scene.width)}
        )
        return scene.sample(
            model,
            positive,
            negative,
            latent=latent["samples"],
            noise_mask=latent.get("noise_mask"),
        )

    composition.assert_composes(scene, prepare=prepare, places=["behind"], run=run)


def test_a_region_of_the_subject_and_a_noise_mask_compose(sd15):
    latent = pack.run_host("VAEEncode", pixels=_pixels(sd15), vae=tiny.vae())
    latent = pack.run_host("SetLatentNoiseMask", samples=latent, mask=_right_half(sd15))
    region = {"mask": _right_half(sd15).flip(-1) * 0.5 + _right_half(sd15)}
    composition.assert_composes(
        sd15, places=["behind"], binding=region, settings=region, acts=False, **_sampling(latent)
    )
