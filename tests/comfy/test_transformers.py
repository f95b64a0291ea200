"""Nested attention in diffusion transformers equals the value table, in every family."""

from __future__ import annotations

import dit_scene
import pack
import pytest
import reference
import tiny
import torch
from dit_scene import SUBJECT_TOKENS, SUBJECT_WIDTH, shared_scene
from joint_value_table import JointSubject

_config = pack.module("nested_core.config")
_attention = pack.module("nested_core.attention")
_encoder = pack.module("nested_core.encoder")
_subject = pack.module("nested_core.subject")
_registry = pack.module("nodes.bridge.families.registry")

EACH = pytest.mark.parametrize("family", dit_scene.FAMILIES)
# By the pack's names.
OF = {"chroma": "flux", "z_image": "lumina2", "anima": "cosmos_predict2"}
TEXT = "a pencil drawing of <anna> with a black dog in a coffee shop"
TWO = "a pencil drawing of <anna> with <rex> in a coffee shop"
PLAIN = "a pencil drawing of woman with a black dog in a coffee shop"
PLAIN_TWO = "a pencil drawing of woman with dog in a coffee shop"


def make_encoder(scene, mode="per_head", scale=2.0, seed=5, **config):
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


def make_subject(encoder, seed=0):
    """Random tokens, as if a photograph had been encoded."""
    tokens = torch.randn(
        SUBJECT_TOKENS, SUBJECT_WIDTH, generator=torch.Generator().manual_seed(seed)
    )
    return _subject.Subject(tokens, encoder, (SUBJECT_TOKENS,), "woman")


def naive(subject, **settings):
    """The same subject for the reference."""
    encoder = subject.encoder

    def weights(site):
        projections = encoder.projections(encoder.family.site(site))
        return projections.to_k.weight, projections.to_v.weight

    norm = encoder.config.value_norm
    settings = {"mode": norm.mode, "scale": norm.scale, **settings}
    return JointSubject(subject.tokens, weights, **settings)


def bind(subject, token="<anna>", noun="woman", **inputs):
    return pack.run("BindSubject", subject=subject, token=token, noun=noun, **inputs)


def apply(scene, *bindings, **inputs):
    return pack.run(
        "Apply",
        model=inputs.pop("model", scene.model),
        clip=scene.clip,
        bindings={f"binding_{i}": binding for i, binding in enumerate(bindings)},
        **inputs,
    )


def sampled(scene, bindings, text=TEXT, **options):
    """With the pack: latents."""
    applied = options.pop("applied", {})
    model, clip = apply(scene, *bindings, **applied)
    positive, negative = (scene.encode(each, clip) for each in (text, dit_scene.NEGATIVE))
    return scene.sample(model, positive, negative, **options)


def expected(scene, slots, text=PLAIN, **options):
    """By the value table; `slots` of the positive prompt's rows."""
    positive, negative = (scene.encode(each) for each in (text, dit_scene.NEGATIVE))
    batch = options.get("batch", 1)
    row_slots = reference.positive_only(slots, batch)
    return scene.sample_naively(row_slots, positive, negative, **options)


def assert_equal(found, wanted, plain=None):
    """To 1e-4, and not because nothing has happened."""
    difference = (found - wanted).norm() / wanted.norm()
    assert difference < 1e-4, difference
    if plain is not None:
        assert (found - plain).norm() / plain.norm() > 1e-3


def rows_of(scene, text=PLAIN, noun="woman"):
    return scene.rows(text, noun)


def plain_of(scene, text=PLAIN, **options):
    positive, negative = (scene.encode(each) for each in (text, dit_scene.NEGATIVE))
    return scene.sample(scene.model, positive, negative, **options)


@EACH
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_subject_equals_the_value_table(family, cfg):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    slots = dict.fromkeys(rows_of(scene), naive(subject))
    found = sampled(scene, [bind(subject)], cfg=cfg)
    assert_equal(found, expected(scene, slots, cfg=cfg), plain_of(scene, cfg=cfg))


@EACH
def test_a_subject_of_no_strength_is_the_host_bit_for_bit(family):
    scene = shared_scene(family)
    subject = make_subject(make_encoder(scene))
    plain = plain_of(scene)
    assert torch.equal(sampled(scene, [bind(subject, strength=0.0)]), plain)
    assert torch.equal(sampled(scene, [bind(subject)], text=PLAIN), plain)
    between_steps = bind(subject, start_percent=0.001, end_percent=0.002)
    assert torch.equal(sampled(scene, [between_steps]), plain)
    mask = torch.zeros(1, 40, 40)
    assert torch.equal(sampled(scene, [bind(subject, mask=mask)]), plain)


@EACH
def test_two_subjects_with_everything_equal_the_value_table(family):
    scene = shared_scene(family)
    anna = make_subject(make_encoder(scene, "all_heads", 1.3))
    rex = make_subject(make_encoder(scene, "none", 1.0, seed=8), seed=3)
    mask = torch.rand(1, 33, 21, generator=torch.Generator().manual_seed(4))
    first, last = (rows_of(scene, PLAIN_TWO, noun) for noun in ("woman", "dog"))
    slots = dict.fromkeys(first, naive(anna, token_weight=3.0, strength=0.7))
    slots |= dict.fromkeys(last, naive(rex, mask=mask, token_weight=0.5))
    bindings = [
        bind(anna, token_weight=3.0, strength=0.7),
        bind(rex, "<rex>", "dog", mask=mask, token_weight=0.5),
    ]
    found = sampled(scene, bindings, text=TWO, batch=2)
    assert_equal(found, expected(scene, slots, PLAIN_TWO, batch=2))


@EACH
def test_nested_keys_may_pass_the_models_own_norm(family):
    scene = shared_scene(family)
    plain_key = make_subject(make_encoder(scene))
    normed = make_subject(make_encoder(scene, nested_key="model_norm"))
    one, other = (sampled(scene, [bind(each)]) for each in (plain_key, normed))
    assert bool(one.isfinite().all() and other.isfinite().all())
    assert (one - other).norm() / one.norm() > 1e-4
