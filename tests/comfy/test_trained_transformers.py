"""An encoder trained on a transformer of diffusers does in ComfyUI what it did in training."""

from __future__ import annotations

from typing import Any

import bound_transformers
import pack
import pytest
import torch
import trained_transformers
from dit_scene import SUBJECT_TOKENS
from scenes import relative_difference
from trained_transformers import NOUN, BothHosts

from nested_core.attention import merge_heads
from nested_core.training.base_model import Caption, PictureSize, TextConditions
from nested_core.training.nested_attention import attend_joint

transformer_call = pack.module("nodes.bridge.families.transformer_call")

SAMPLED = "a pencil drawing of {subject} with a black dog"
FAMILIES = ["flux", "sd3", "qwen_image", "z_image", "cosmos_predict2", "wan"]


ENCODERS = [*((family, "model_norm") for family in FAMILIES), ("flux", "plain")]


@pytest.fixture(scope="module", params=ENCODERS, ids="-".join)
def hosts(request, tmp_path_factory) -> BothHosts:
    family, nested_key = request.param
    folder = tmp_path_factory.mktemp(family)
    return trained_transformers.both_hosts(family, folder, nested_key=nested_key)


@pytest.fixture
def subject(hosts) -> Any:
    """Random tokens, as if photographs had been encoded."""
    width = hosts.encoder.config.resampler.output_dim
    tokens = torch.randn(SUBJECT_TOKENS, width, generator=torch.Generator().manual_seed(3))
    return pack.module("nested_core.subject").Subject(
        tokens, hosts.encoder, (SUBJECT_TOKENS,), NOUN
    )


def sampled(hosts, subject) -> Any:
    """Samples with the pack; the calls of the model that it makes."""
    scene = hosts.scene
    binding = bound_transformers.bind(subject, noun=NOUN)
    model, clip = bound_transformers.apply(scene, binding)
    text = SAMPLED.replace("{subject}", "<anna>")
    calls: list[Any] = []
    hook = scene.model.model.diffusion_model.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    size = scene.height, scene.width, scene.frames
    # Whole patches, as in training, and an even number of them: of an odd one the two hosts call
    # another the middle in Qwen-Image.
    scene.height, scene.width, scene.frames = 8, 12, 1
    try:
        scene.sample(model, scene.encode(text, clip), scene.encode("", clip), cfg=1.0)
    finally:
        hook.remove()
        scene.height, scene.width, scene.frames = size
    return calls


def places_of(hosts) -> list[int]:
    return hosts.scene.rows(SAMPLED.replace("{subject}", NOUN), NOUN)


def test_its_sites_are_those_of_the_model(hosts, request) -> None:
    assert [site.path for site in hosts.encoder.site_dims] == hosts.scene.sites
    assert hosts.encoder.config.nested_key in request.node.callspec.id


def test_the_noun_lies_in_the_same_rows(hosts) -> None:
    caption = Caption(SAMPLED, NOUN)
    text = hosts.base_model.encode_captions([caption], [PictureSize(1, 1, 0, 0, 1, 1)])
    assert text.positions.tolist() == [places_of(hosts)]
    rows = hosts.scene.context(hosts.scene.encode(caption.plain))
    assert text.context.shape[1:] == rows.shape


def test_attention_is_the_same_in_both_hosts(hosts, subject, monkeypatch) -> None:
    seen: list[Any] = []
    asked: list[Any] = []
    kind = transformer_call.TransformerCall
    output, deltas = kind.output, kind._deltas

    def kept(call, attention, site, base, log_sums):
        asked.append((call, site, attention, base))
        return deltas(call, attention, site, base, log_sums)

    def watched(call, *args):
        asked.clear()
        out = output(call, *args)
        seen.extend((*each, out) for each in asked)
        return out

    monkeypatch.setattr(kind, "_deltas", kept)
    monkeypatch.setattr(kind, "output", watched)
    sampled(hosts, subject)
    assert len(seen) == hosts.scene.steps * len(hosts.scene.sites)
    subjects = hosts.subjects(subject.tokens, places_of(hosts))
    for call, site, attention, base, theirs in seen:
        is_joint = call.family.is_joint
        num_text = call.num_text_keys if is_joint else attention.key.shape[2]
        start = num_text if is_joint else 0
        ours = attend_joint(
            attention.query,
            attention.key,
            attention.value,
            num_text,
            slice(start, start + call.grid.num_pixels),
            attention.bias,
            hosts.base_model.family.site(site.path),
            subjects,
            call.key_norms[site],
        )
        assert relative_difference(merge_heads(ours), theirs) < 1e-5
        assert relative_difference(base, theirs) > 1e-4


def test_the_model_predicts_the_same_in_both_hosts(hosts, subject) -> None:
    calls = sampled(hosts, subject)
    assert len(calls) == hosts.scene.steps
    subjects = hosts.subjects(subject.tokens, places_of(hosts))
    for args, kwargs, theirs in calls:
        noisy, times, text = as_in_training(hosts, args, kwargs)
        ours = hosts.base_model.predict(noisy, times, text, subjects)
        plain = hosts.base_model.predict(noisy, times, text, None)
        theirs = theirs.reshape(noisy.shape)
        assert relative_difference(ours, theirs) < 1e-4
        assert relative_difference(plain, theirs) > 1e-3


def as_in_training(hosts, args, kwargs) -> tuple[torch.Tensor, torch.Tensor, TextConditions]:
    """What ComfyUI has given its model, in the words of the trainer."""
    noisy, times = args[0], args[1]
    context = kwargs["context"] if "context" in kwargs else args[2]
    noisy = noisy[:, :, 0] if noisy.ndim == 5 else noisy
    extras = {"lengths": torch.tensor([context.shape[1]])}
    if kwargs.get("y") is not None:
        extras["pooled"] = kwargs["y"]
    return (
        noisy,
        times * TIMES.get(hosts.scene.family, 1000.0),
        TextConditions(context, torch.tensor([[-1]]), extras),
    )


# From the number that ComfyUI gives a model to the trainer's timesteps.
TIMES = {"sd3": 1.0, "wan": 1.0}
