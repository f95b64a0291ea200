"""The pack in a tiny diffusion transformer, beside the value table: what two samplings must agree on."""

from __future__ import annotations

from typing import Any

import dit_scene
import pack
import reference
import tiny
import torch
from dit_scene import SUBJECT_TOKENS, SUBJECT_WIDTH, TransformerScene
from joint_value_table import JointSubject
from torch import Tensor

_config = pack.module("nested_core.config")
_attention = pack.module("nested_core.attention")
_encoder = pack.module("nested_core.encoder")
_subject = pack.module("nested_core.subject")
_registry = pack.module("nodes.bridge.families.registry")

# By the pack's names.
OF = {"chroma": "flux", "z_image": "lumina2", "anima": "cosmos_predict2"}
TEXT = "a pencil drawing of <anna> with a black dog in a coffee shop"
TWO = "a pencil drawing of <anna> with <rex> in a coffee shop"
PLAIN = "a pencil drawing of woman with a black dog in a coffee shop"
PLAIN_TWO = "a pencil drawing of woman with dog in a coffee shop"


def make_encoder(
    scene: TransformerScene,
    mode: str = "per_head",
    scale: float = 2.0,
    seed: int = 5,
    **config: Any,
) -> Any:
    """A random encoder for the scene's model."""
    vision = tiny.VISION_CONFIG
    settings = _config.EncoderConfig(
        noun="woman",
        base="tiny",
        image_encoder=_config.ImageEncoderConfig(
            hidden_size=vision["hidden_size"], image_size=vision["image_size"]
        ),
        resampler=_config.ResamplerConfig(
            embedding_dim=vision["hidden_size"],
            dim=24,
            depth=2,
            dim_head=8,
            heads=2,
            num_queries=6,
            output_dim=SUBJECT_WIDTH,
            ff_mult=2,
        ),
        value_norm=_attention.ValueNorm(mode, scale),
        family=OF.get(scene.family, scene.family),
        **config,
    )
    dims = _registry.site_dims(scene.model)
    return tiny.randomise(_encoder.Encoder(settings, dims, name="tiny"), seed)


def make_subject(encoder: Any, seed: int = 0, references: int = 1) -> Any:
    """Random tokens, as if photographs had been encoded."""
    tokens = torch.randn(
        references * SUBJECT_TOKENS,
        SUBJECT_WIDTH,
        generator=torch.Generator().manual_seed(seed),
    )
    return _subject.Subject(tokens, encoder, (SUBJECT_TOKENS,) * references, "woman")


def naive(subject: Any, **settings: Any) -> JointSubject:
    """The same subject for the reference."""
    encoder = subject.encoder

    def weights(site: str) -> tuple[Tensor, Tensor]:
        projections = encoder.projections(encoder.family.site(site))
        return projections.to_k.weight, projections.to_v.weight

    norm = encoder.config.value_norm
    settings = {"mode": norm.mode, "scale": norm.scale, **settings}
    return JointSubject(subject.tokens, weights, **settings)


def bind(subject: Any, token: str = "<anna>", noun: str = "woman", **inputs: Any) -> Any:
    """By the node."""
    return pack.run("BindSubject", subject=subject, token=token, noun=noun, **inputs)


def apply(scene: TransformerScene, *bindings: Any, **inputs: Any) -> Any:
    """MODEL and CLIP, by the node."""
    return pack.run(
        "Apply",
        model=inputs.pop("model", scene.model),
        clip=scene.clip,
        bindings={f"binding_{i}": binding for i, binding in enumerate(bindings)},
        **inputs,
    )


def sampled(scene: TransformerScene, bindings: Any, text: str = TEXT, **options: Any) -> Tensor:
    """With the pack: latents."""
    applied = options.pop("applied", {})
    model, clip = apply(scene, *bindings, **applied)
    positive, negative = (scene.encode(each, clip) for each in (text, dit_scene.NEGATIVE))
    return scene.sample(model, positive, negative, **options)


def expected(
    scene: TransformerScene, slots: dict[int, JointSubject], text: str = PLAIN, **options: Any
) -> Tensor:
    """By the value table; `slots` of the positive prompt's rows."""
    positive, negative = (scene.encode(each) for each in (text, dit_scene.NEGATIVE))
    batch = options.get("batch", 1)
    row_slots = reference.positive_only(slots, batch)
    return scene.sample_naively(row_slots, positive, negative, **options)


def assert_equal(found: Tensor, wanted: Tensor, plain: Tensor | None = None) -> None:
    """To 1e-4, and not because nothing has happened."""
    difference = (found - wanted).norm() / wanted.norm()
    assert difference < 1e-4, difference
    if plain is not None:
        assert (found - plain).norm() / plain.norm() > 1e-3


def rows_of(scene: TransformerScene, text: str = PLAIN, noun: str = "woman") -> list[int]:
    """Of the noun's last token."""
    return scene.rows(text, noun)


def plain_of(scene: TransformerScene, text: str = PLAIN, **options: Any) -> Tensor:
    """Without the pack."""
    positive, negative = (scene.encode(each) for each in (text, dit_scene.NEGATIVE))
    return scene.sample(scene.model, positive, negative, **options)
