"""Scenes for tests: a tiny checkpoint, an encoder that fits it, subjects, and a sampler."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import pack
import reference
import tiny
import torch
from torch import Tensor

NOUNS = {"<anna>": "woman", "<rex>": "dog"}
SIZE = HEIGHT, WIDTH = 16, 12  # of latents, unless a scene says otherwise

_config = pack.module("nested_core.config")
_attention = pack.module("nested_core.attention")
_encoder = pack.module("nested_core.encoder")
_sites = pack.module("nested_core.families.unet_sites")
_family = pack.module("nodes.bridge.families.registry")


def plain_prompt(text: str) -> str:
    """With nouns in the tokens' places."""
    for token, noun in NOUNS.items():
        text = text.replace(token, noun)
    return text


@dataclass
class Scene:
    """A checkpoint and what is bound to it. Outputs of sampling are latents."""

    family: str
    model: Any
    clip: Any
    vision: Any
    encoder: Any
    height: int = HEIGHT
    width: int = WIDTH
    steps: int = 3
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> list[Any]:
        return list(_family.site_dims(self.model))

    def subject(self, seed: int = 0, references: int = 1, **inputs: Any) -> Any:
        """A subject encoded from random pictures."""
        image = torch.rand(references, 40, 50, 3, generator=torch.Generator().manual_seed(seed))
        return pack.run(
            "EncodeSubject", encoder=self.encoder, image=image, clip_vision=self.vision, **inputs
        )

    def bind(
        self, subject: Any = None, token: str = "<anna>", noun: str = "woman", **inputs: Any
    ) -> Any:
        subject = self.subject() if subject is None else subject
        return pack.run("BindSubject", subject=subject, token=token, noun=noun, **inputs)

    def apply(
        self, *bindings: Any, model: Any = None, clip: Any = None, **inputs: Any
    ) -> tuple[Any, Any]:
        """MODEL and CLIP with the bindings."""
        return pack.run(
            "Apply",
            model=self.model if model is None else model,
            clip=self.clip if clip is None else clip,
            bindings={f"binding_{i}": binding for i, binding in enumerate(bindings)},
            **inputs,
        )

    def encode(self, clip: Any, text: str) -> Any:
        return pack.run_host("CLIPTextEncode", clip=clip, text=text)

    def sample(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        *,
        cfg: float = 4.0,
        batch: int = 1,
        **options: Any,
    ) -> Tensor:
        """A few steps from fixed noise. `latent` and `noise_mask` may be given for inpainting."""
        shape = (batch, 4, self.height, self.width)
        latent = options.pop("latent", torch.zeros(shape))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(11))
        return comfy.sample.sample(
            model,
            noise,
            options.pop("steps", self.steps),
            cfg,
            options.pop("sampler", "euler"),
            "normal",
            positive,
            negative,
            latent,
            denoise=options.pop("denoise", 1.0),
            disable_pbar=True,
            seed=5,
            **options,
        )

    def naive(self, subject: Any, **settings: Any) -> reference.NaiveSubject:
        """The same subject for the reference; settings as of `NaiveSubject`."""
        norm = subject.encoder.config.value_norm
        settings = {"mode": norm.mode, "scale": norm.scale, **settings}

        def weights(site: tuple[str, int, int]) -> tuple[Tensor, Tensor]:
            projections = subject.encoder.projections(_sites.AttentionSite(*site))
            return projections.to_k.weight, projections.to_v.weight

        return reference.NaiveSubject(subject.tokens, weights, **settings)

    def sample_naively(
        self,
        row_slots: reference.RowSlots,
        positive: Any,
        negative: Any,
        *,
        model: Any = None,
        make_tables: reference.Tables | None = None,
        **options: Any,
    ) -> Tensor:
        """What the reference makes of the plain prompt."""
        plain = self.model if model is None else model
        naive = reference.with_naive_subjects(plain, self.sites, row_slots, make_tables)
        return self.sample(naive, positive, negative, **options)


def make_encoder(family: str, model: Any, seed: int = 5, **config: Any) -> Any:
    """A random encoder for this model. `config` entries replace those of the tiny configuration."""
    settings = {
        "noun": "person",
        "base": family,
        "image_encoder": _config.ImageEncoderConfig(
            hidden_size=tiny.VISION_CONFIG["hidden_size"],
            image_size=tiny.VISION_CONFIG["image_size"],
        ),
        "resampler": _config.ResamplerConfig(
            embedding_dim=tiny.VISION_CONFIG["hidden_size"],
            dim=24,
            depth=2,
            dim_head=8,
            heads=2,
            num_queries=6,
            output_dim=tiny.TEXT_WIDTH[family],
            ff_mult=2,
        ),
        "value_norm": _attention.ValueNorm("per_head", 2.0),
    }
    encoder = _encoder.Encoder(
        _config.EncoderConfig(**{**settings, **config}), _family.site_dims(model), name="tiny"
    )
    return tiny.randomise(encoder, seed)


def make_scene(family: str, dtype: torch.dtype = torch.float32, **encoder_config: Any) -> Scene:
    """A scene of the family, everything random from fixed seeds."""
    model = tiny.unet(family, dtype)
    return Scene(
        family,
        model,
        tiny.clip(family),
        tiny.clip_vision(),
        make_encoder(family, model, **encoder_config),
    )


# Four layers of one size: for what is the same at every site of every family.
SMALL = {
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}


@functools.cache
def shared_scene(family: str, steps: int = 2) -> Scene:
    """One scene for all tests that leave its checkpoint as it is; `small` is a family here."""
    scene = make_scene_of("sd15", **SMALL) if family == "small" else make_scene(family)
    scene.steps = steps
    return scene


def make_scene_of(family: str, **unet_config: Any) -> Scene:
    """A scene of the family on a UNet of another layout."""
    model = tiny.unet(family, **unet_config)
    return Scene(family, model, tiny.clip(family), tiny.clip_vision(), make_encoder(family, model))


def value_norm(mode: str, scale: float = 2.0) -> Any:
    """A value norm of the pack."""
    return _attention.ValueNorm(mode, scale)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
