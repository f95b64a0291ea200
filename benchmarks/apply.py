"""Time of Apply on SDXL's 70 sites, of the projection to keys and values, and of each step.

    python dev.py bench apply

Apply is measured on a UNet and an encoder of SDXL's full size without their weights (on the meta
device); the rest on a UNet of SDXL's layout with narrow layers, so the figures are the overhead of
the machinery rather than of the arithmetic.
"""

from __future__ import annotations

import _host  # first: it starts ComfyUI
import comfy.supported_models
import pack
import scenes
import tiny
import torch
from comfy.model_patcher import ModelPatcher

_config = pack.module("nested_core.config")
_encoder = pack.module("nested_core.encoder")
_kv_cache = pack.module("nodes.bridge.model.kv_cache")
_subject = pack.module("nested_core.subject")
_family = pack.module("nodes.bridge.families.registry")

SDXL_LAYOUT = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
PROMPT, PLAIN = "a drawing of <anna> in a coffee shop", "a drawing of person in a coffee shop"


def full_size_binding() -> tuple[ModelPatcher, object]:
    """SDXL and an encoder of the released size, without weights; the subject's tokens are real."""
    config = comfy.supported_models.SDXL(
        {
            **tiny.FAMILIES["sdxl"].unet_config,
            **SDXL_LAYOUT,
            "model_channels": 320,
            "num_head_channels": 64,
            "context_dim": 2048,
            "adm_in_channels": 2816,
            "dtype": torch.float16,
        }
    )
    model = ModelPatcher(config.get_model({}, device=torch.device("meta")), tiny.CPU, tiny.CPU)
    settings = _config.EncoderConfig(
        noun="person",
        base="sdxl",
        image_encoder=_config.ImageEncoderConfig(hidden_size=1280, image_size=224),
        resampler=_config.ResamplerConfig(
            embedding_dim=1280,
            dim=1280,
            depth=4,
            dim_head=64,
            heads=20,
            num_queries=1024,
            output_dim=2048,
            ff_mult=4,
        ),
        value_norm=scenes.value_norm("per_head"),
    )
    with torch.device("meta"):
        encoder = _encoder.Encoder(settings, _family.site_dims(model))
    subject = _subject.Subject(torch.randn(1024, 2048), encoder, (1024,), "person")
    return model, pack.run("BindSubject", subject=subject, token="<anna>")


def measure_apply() -> None:
    model, binding = full_size_binding()
    clip = tiny.clip("sdxl")

    def apply() -> None:
        pack.run("Apply", model=model, clip=clip, bindings={"binding_0": binding})

    num_sites = len(_family.site_dims(model))
    _host.report(f"Apply, {num_sites} sites, the first time", _host.seconds(apply, repeats=1))
    _host.report(f"Apply, {num_sites} sites, again", _host.seconds(apply))


def measure_sampling(steps: int, size: int) -> None:
    scene = scenes.make_scene_of("sdxl", **SDXL_LAYOUT)
    scene.height = scene.width = size
    subject = scene.subject()
    device, dtype = scene.model.load_device, torch.float32

    def project() -> None:
        fresh = _subject.Subject(
            subject.tokens + torch.rand(1), subject.encoder, subject.references, subject.noun
        )
        _kv_cache.keys_and_values(fresh, scene.sites, device, dtype)

    _host.report(
        f"keys and values, {len(scene.sites)} narrow sites, once per subject",
        _host.seconds(project),
    )
    model, clip = scene.apply(scene.bind(subject, noun="person"))
    cases = {
        "plain model": (scene.model, scene.clip, PLAIN),
        "Apply, prompt without the subject": (model, clip, PLAIN),
        "Apply, prompt with the subject": (model, clip, PROMPT),
    }
    baseline = None
    for name, (patcher, encoder, text) in cases.items():
        positive, negative = scene.encode(encoder, text), scene.encode(encoder, "blurry")

        def sample(num_steps: int) -> None:
            scene.sample(patcher, positive, negative, steps=num_steps)  # noqa: B023

        sample(1)
        # Two lengths, so that what happens once per sampling falls out.
        longer, shorter = (_host.seconds(lambda: sample(n)) for n in (steps + 1, 1))  # noqa: B023
        step = (longer - shorter) / steps
        baseline = step if baseline is None else baseline
        _host.report(f"one step at {size * 8} px, {name}", step)
        if step is not baseline:
            per_site = (step - baseline) / len(scene.sites)
            _host.report("    more, per site", per_site * 1e6, "us")


if __name__ == "__main__":
    with torch.inference_mode():
        measure_apply()
        measure_sampling(steps=8, size=16)
