"""LoRAs beside a subject: a real file on every attention layer of the UNet and the text encoders."""

from __future__ import annotations

import composition
import model_files
import pack
import pytest
import scenes


@pytest.fixture
def lora(scene):
    return model_files.write_lora(f"tiny_{scene.family}", scene.model, scene.clip)


def _load(lora, model, clip):
    return pack.run_host(
        "LoraLoader", model=model, clip=clip, lora_name=lora, strength_model=0.8, strength_clip=0.6
    )


@pytest.mark.smoke
@pytest.mark.parametrize("place", composition.PLACES)
@composition.FAMILIES_AND_CASTS
def test_a_lora_on_model_and_text_encoder_composes(scene, lora, place, cast):
    subject = scene.subject()
    model, clip = scene.model, scene.clip
    if place == "before":
        model, clip = _load(lora, model, clip)
    bindings = composition.bindings(scene, subject, cast)
    model, clip = scene.apply(*bindings, model=model, clip=clip, separation=cast.separation)
    if place == "behind":
        model, clip = _load(lora, model, clip)
    found = composition.sample_prompt(scene, model, clip, cast.prompt)

    with_lora = scenes.Scene(
        scene.family, *_load(lora, scene.model, scene.clip), scene.vision, scene.encoder
    )
    expected = composition.sample_naive(with_lora, subject, cast=cast)
    assert scenes.relative_difference(found, expected) < composition.TOLERANCE
    without_lora = composition.sample_naive(scene, subject, cast=cast)
    assert scenes.relative_difference(without_lora, expected) > composition.VISIBLE
    without_subject = composition.sample_naive(with_lora, None, cast=cast)
    assert scenes.relative_difference(without_subject, expected) > composition.VISIBLE


def test_a_lora_on_the_model_alone_composes(scene, lora):
    def alter(model):
        return pack.run_host("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.8)

    composition.assert_composes(scene, alter)


def test_taking_a_lora_away_restores_the_result(scene, lora):
    """The UNet's weights are patched in place and back again between the two."""
    model, clip = scene.apply(scene.bind())
    before = composition.sample_prompt(scene, model, clip, composition.PROMPT)
    with_lora = composition.sample_prompt(scene, *_load(lora, model, clip), composition.PROMPT)
    after = composition.sample_prompt(scene, model, clip, composition.PROMPT)
    assert before.equal(after)
    assert scenes.relative_difference(with_lora, before) > composition.VISIBLE


def test_a_lora_hook_on_the_bound_prompt_composes(scene, lora):
    """A hook gives the positive prompt weights of its own: its rows run in a call of their own."""
    hooks = pack.run_host(
        "CreateHookLoraModelOnly", extra="nodes_hooks", lora_name=lora, strength_model=0.8
    )

    def prepare(positive, negative):
        positive = pack.run_host(
            "ConditioningSetProperties",
            extra="nodes_hooks",
            cond_NEW=positive,
            strength=1.0,
            set_cond_area="default",
            hooks=hooks,
        )
        return positive, negative

    composition.assert_composes(scene, prepare=prepare, places=["behind"])
