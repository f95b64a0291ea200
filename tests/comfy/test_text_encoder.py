"""What stands between Load Checkpoint, Apply and the text: SDXL's two prompts, the refiner, layers,
merges, LoRA, hooks, a second Apply, another pack's own CLIP."""

from __future__ import annotations

import re
from typing import Any

import comfy.sd
import comfy.sdxl_clip
import pack
import pytest
import reference
import scenes
import tiny
import torch
from text_encoders import lora_file, slots_of, with_nouns
from two_subjects import warnings_of


@pytest.mark.parametrize(
    ("text_g", "text_l", "slots"),
    [
        ("a <anna>", "a photo", {2: "<anna>"}),
        ("a photo", "a <anna>", {2: "<anna>"}),
        ("a <anna>", "a <anna>", {2: "<anna>"}),
        ("a <anna>", "a big <anna>", {2: "<anna>", 3: "<anna>"}),
        ("a <anna>", "a <LOUD>", {2: "<anna>"}),  # g wins
        ("a <anna> <LOUD>", "a <LOUD>", {2: "<anna>", 3: "<LOUD>"}),
        ("very " * 80 + "<anna>", "a <rex>", {3: "<rex>", 77 + 6: "<anna>"}),
        ("a <rex>", "very " * 80 + "<anna>", {3: "<rex>", 77 + 6: "<anna>"}),
        ("", "<anna>", {1: "<anna>"}),
        ("a photo", "a photo", {}),
    ],
)
def test_sdxls_own_text_node_binds_the_rows_of_either_prompt(sdxl_clips, text_g, text_l, slots):
    sizes = dict.fromkeys(
        ("width", "height", "crop_w", "crop_h", "target_width", "target_height"), 64
    )

    def encode(clip, *texts):
        ((context, extras),) = pack.run_host(
            "CLIPTextEncodeSDXL",
            extra="nodes_clip_sdxl",
            clip=clip,
            text_g=texts[0],
            text_l=texts[1],
            **sizes,
        )
        return context, extras

    context, extras = encode(sdxl_clips.bound, text_g, text_l)
    assert sdxl_clips.named(extras) == slots
    expected, expected_extras = encode(sdxl_clips.plain, with_nouns(text_g), with_nouns(text_l))
    assert torch.equal(context, expected)
    assert extras.keys() - {"model_conds"} == expected_extras.keys()


@pytest.mark.parametrize(
    ("text", "row"), [("a <anna>", 2), ("embedding:sd15 <anna>", 1), ("embedding:good <anna>", 2)]
)
def test_the_refiner_binds_the_row_of_its_one_text_encoder(sdxl_clips, monkeypatch, text, row):
    # It is given the tokens of L as well and never reads them.
    models = (comfy.sdxl_clip.SDXLRefinerClipModel, comfy.sdxl_clip.SDXLTokenizer)
    monkeypatch.setitem(tiny._CLIPS, "refiner", models)
    refiner = tiny.clip("refiner")
    refiner.tokenizer = sdxl_clips.plain.tokenizer
    binding = sdxl_clips.scene.bind()
    ((_, extras),) = pack.run_host(
        "CLIPTextEncodeSDXLRefiner",
        extra="nodes_clip_sdxl",
        clip=sdxl_clips.scene.apply(binding, clip=refiner)[1],
        ascore=6.0,
        width=64,
        height=64,
        text=text,
    )
    assert slots_of(extras) == {row: binding.id}


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_set_last_layer_before_or_behind_apply_gives_the_same(clips, layer):
    def cut(clip):
        return pack.run_host("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer)

    bindings = clips.bound.nested_bindings
    behind, before = cut(clips.bound), clips.scene.apply(*bindings, clip=cut(clips.plain))[1]
    ((expected, _),) = clips.scene.encode(cut(clips.plain), "a woman")
    for clip in (behind, before):
        ((context, extras),) = clips.scene.encode(clip, "a <anna>")
        assert torch.equal(context, expected)
        assert clips.named(extras) == {2: "<anna>"}


@pytest.mark.parametrize(
    ("node", "extra", "inputs"),
    [
        (
            "CLIPMergeSimple",
            "nodes_model_merging",
            {"clip1": "bound", "clip2": "other", "ratio": 0.4},
        ),
        (
            "CLIPAttentionMultiply",
            "nodes_attention_multiply",
            {"clip": "bound", "q": 1.1, "k": 0.9, "v": 1.2, "out": 0.8},
        ),
    ],
)
def test_nodes_that_change_the_weights_keep_the_bindings(clips, node, extra, inputs):
    other = tiny.clip(clips.family, seed=9)

    def changed(clip):
        sockets = {"bound": clip, "other": other}
        given = {name: sockets.get(value, value) for name, value in inputs.items()}
        return pack.run_host(node, extra=extra, **given)

    ((context, extras),) = clips.scene.encode(changed(clips.bound), "a <anna>")
    ((expected, _),) = clips.scene.encode(changed(clips.plain), "a woman")
    assert torch.equal(context, expected)
    assert not torch.equal(context, clips.encode("a <anna>")[0])
    assert clips.named(extras) == {2: "<anna>"}


def test_clones_of_clones_keep_the_bindings(clips):
    clip = clips.bound.clone().clone(disable_dynamic=True)
    assert type(clip) is type(clips.bound)
    ((_, extras),) = clips.scene.encode(clip, "a <anna>")
    assert clips.named(extras) == {2: "<anna>"}


def test_apply_leaves_the_text_encoder_and_its_tokenizer_as_they_were():
    scene = scenes.make_scene("sdxl")
    plain = scene.clip
    attributes, inner = dict(vars(plain)), dict(vars(plain.tokenizer))
    inner_attributes = {name: dict(vars(each)) for name, each in inner.items()}
    before = plain.tokenize("a <anna>", return_word_ids=True)

    _, bound = scene.apply(scene.bind())
    bound.tokenize("a <anna>")
    scene.encode(bound, "a <anna>")

    assert type(plain) is comfy.sd.CLIP
    assert bound.tokenizer is plain.tokenizer
    assert vars(plain) == attributes
    assert vars(plain.tokenizer) == inner
    assert {name: dict(vars(each)) for name, each in inner.items()} == inner_attributes
    assert plain.tokenize("a <anna>", return_word_ids=True) == before


def test_tokenizer_options_pass_through(clips):
    bound, plain = clips.bound.clone(), clips.plain.clone()
    for clip in (bound, plain):
        clip.set_tokenizer_option("clip_l_min_length", 100)
    found, expected = bound.tokenize("a <anna>"), plain.tokenize("a woman")
    assert found == expected
    assert len(found["l"][0]) == 100
    assert bound.tokenize("(<anna>)", disable_weights=True) == plain.tokenize(
        "(woman)", disable_weights=True
    )


class TestApplyTwice:
    def test_both_tokens_are_bound(self, clips):
        scene = clips.scene
        anna, rex = scene.bind(), scene.bind(token="<rex>", noun="dog")
        _, clip = scene.apply(rex, clip=scene.apply(anna)[1])
        ((_, extras),) = scene.encode(clip, "<rex> and <anna>")
        assert slots_of(extras) == {1: rex.id, 3: anna.id}

    def test_the_later_binding_of_a_token_stands(self, clips):
        scene = clips.scene
        first, other = scene.bind(), scene.bind(token="<rex>", noun="dog")
        later = scene.bind(scene.subject(7), noun="tall man")
        _, clip = scene.apply(later, clip=scene.apply(first, other)[1])
        ((context, extras),) = scene.encode(clip, "<rex> and <anna>")
        assert later.id != first.id
        assert slots_of(extras) == {1: other.id, 4: later.id}
        ((expected, _),) = scene.encode(clips.plain, "dog and tall man")
        assert torch.equal(context, expected)

    def test_the_earlier_text_encoder_keeps_its_own_bindings(self, clips):
        scene = clips.scene
        first = scene.bind()
        _, earlier = scene.apply(first)
        scene.apply(scene.bind(scene.subject(7), noun="man"), clip=earlier)
        ((_, extras),) = scene.encode(earlier, "<anna>")
        assert slots_of(extras) == {1: first.id}


class ForeignCLIP(comfy.sd.CLIP):
    """What another pack might do: rewrite the prompt, add an extra, keep its class in clones."""

    suffix = ""

    def clone(self, *args: Any, **kwargs: Any) -> ForeignCLIP:
        twin = super().clone(*args, **kwargs)
        twin.__class__, twin.suffix = ForeignCLIP, self.suffix
        return twin

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        return super().tokenize(f"{text} {self.suffix}", return_word_ids, **kwargs)

    def encode_from_tokens_scheduled(self, *args: Any, **kwargs: Any) -> Any:
        conditioning = super().encode_from_tokens_scheduled(*args, **kwargs)
        conditioning[0][1]["foreign"] = True
        return conditioning


def test_another_packs_text_encoder_keeps_what_it_overrides(clips):
    foreign = clips.plain.clone()
    foreign.__class__, foreign.suffix = ForeignCLIP, "in a park"
    _, bound = clips.scene.apply(*clips.bound.nested_bindings, clip=foreign)
    for clip in (bound, bound.clone(), clips.scene.apply(clips.scene.bind(), clip=bound)[1]):
        assert isinstance(clip, ForeignCLIP)
        assert clip.suffix == "in a park"
        ((context, extras),) = clips.scene.encode(clip, "a <anna>")
        ((expected, _),) = clips.scene.encode(clips.plain, "a woman in a park")
        assert torch.equal(context, expected)
        assert extras["foreign"]
        assert clips.named(extras) == {2: "<anna>"}
    assert type(foreign) is ForeignCLIP


def _with_lora(family, model, clip, strength=0.8):
    return pack.run_host(
        "LoraLoader",
        model=model,
        clip=clip,
        lora_name=lora_file(family),
        strength_model=strength,
        strength_clip=strength,
    )


class PlusCLIP(comfy.sd.CLIP):
    """Another pack's own syntax: the word in front of a + weighs more."""

    def clone(self, *args: Any, **kwargs: Any) -> PlusCLIP:
        twin = super().clone(*args, **kwargs)
        twin.__class__ = type(self)
        return twin

    def tokenize(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
        text = re.sub(r"([a-z]+)[+]", r"(\1:1.5)", text).replace("+", "")
        return super().tokenize(text, return_word_ids, **kwargs)


def test_a_foreign_syntax_that_a_mark_would_disturb_is_read_unbound(clips, caplog):
    foreign = clips.plain.clone()
    foreign.__class__ = PlusCLIP
    _, bound = clips.scene.apply(*clips.bound.nested_bindings, clip=foreign)
    for text, slots in [("a <anna>, b+", {2: "<anna>"}), ("a <anna>+", {})]:
        ((context, extras),) = clips.scene.encode(bound, text)
        ((expected, _),) = clips.scene.encode(foreign, with_nouns(text))
        assert torch.equal(context, expected)
        assert clips.named(extras) == slots
    assert len(warnings_of(caplog)) == 1


@pytest.mark.smoke
@pytest.mark.parametrize("order", ["lora, apply", "apply, lora", "lora, apply, lora"])
def test_a_lora_before_or_behind_apply_changes_the_checkpoint_alone(family, order):
    scene = scenes.make_scene(family)
    subject = scene.subject()
    nodes = order.split(", ")
    strength = 0.8 / nodes.count("lora")
    model, clip = scene.model, scene.clip
    for node in nodes:
        if node == "lora":
            model, clip = _with_lora(family, model, clip, strength)
        else:
            model, clip = scene.apply(scene.bind(subject), model=model, clip=clip)
    plain_model, plain_clip = _with_lora(family, scene.model, scene.clip)

    positive, negative = (scene.encode(clip, text) for text in ("a <anna>", "bad"))
    expected = [scene.encode(plain_clip, text) for text in ("a woman", "bad")]
    assert scenes.relative_difference(positive[0][0], expected[0][0][0]) < 1e-5
    assert (
        scenes.relative_difference(scene.encode(scene.clip, "a woman")[0][0], expected[0][0][0])
        > 0.01
    )
    found = scene.sample(model, positive, negative)
    row_slots = reference.positive_only({2: scene.naive(subject)})
    naive = scene.sample_naively(row_slots, *expected, model=plain_model)
    assert scenes.relative_difference(found, naive) < 1e-4
    assert scenes.relative_difference(scene.sample(plain_model, *expected), naive) > 0.01


@pytest.mark.parametrize("schedule_clip", [False, True])
def test_a_text_encoder_with_scheduled_hooks_carries_the_map(clips, schedule_clip):
    family = clips.family
    hooks = pack.run_host(
        "CreateHookLora",
        extra="nodes_hooks",
        lora_name=lora_file(family),
        strength_model=0.0,
        strength_clip=1.0,
    )
    early = pack.run_host("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    keyframes = pack.run_host(
        "CreateHookKeyframe", strength_mult=0.2, start_percent=0.5, prev_hook_kf=early
    )
    hooks = pack.run_host("SetHookKeyframes", hooks=hooks, hook_kf=keyframes)

    def encode(clip, text):
        hooked = pack.run_host(
            "SetClipHooks",
            clip=clip,
            schedule_clip=schedule_clip,
            apply_to_conds=True,
            hooks=hooks,
        )
        return clips.scene.encode(hooked, text)

    found, expected = encode(clips.bound, "a <anna>"), encode(clips.plain, "a woman")
    assert len(found) == len(expected) == (2 if schedule_clip else 1)
    for (context, extras), (plain, plain_extras) in zip(found, expected, strict=True):
        assert torch.equal(context, plain)
        assert clips.named(extras) == {2: "<anna>"}
        assert extras.keys() - {"model_conds"} == plain_extras.keys()
    if schedule_clip:
        assert not torch.equal(found[0][0], found[1][0])
