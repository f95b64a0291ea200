"""The value table for diffusion transformers, and the tiny models that it is asked on."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import dit_scene
import joint_value_table
import pack
import pytest
import reference
import torch
from dit_scene import NEGATIVE, PROMPT, TransformerScene
from scenes import relative_difference

TOLERANCE = 1e-5  # float64 against float32, over two steps
VISIBLE = 5e-4
SITES = {
    "flux": ["double.0", "double.1", "single.0", "single.1"],
    "chroma": ["double.0", "double.1", "single.0", "single.1"],
    "sd3": ["joint.0", "joint.1", "joint.2"],
    "qwen_image": ["blocks.0", "blocks.1", "blocks.2"],
    "lumina2": ["blocks.0", "blocks.1", "blocks.2"],
    "z_image": ["blocks.0", "blocks.1", "blocks.2"],
    "cosmos_predict2": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
    "anima": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
    "wan": ["blocks.0.cross", "blocks.1.cross", "blocks.2.cross"],
}


@pytest.fixture(params=dit_scene.FAMILIES)
def scene(request: pytest.FixtureRequest) -> TransformerScene:
    return dit_scene.shared_scene(request.param)


@pytest.fixture
def prompts(scene):
    return scene.encode(PROMPT), scene.encode(NEGATIVE)


def slots_of(scene, subject, noun="woman"):
    return {row: subject for row in scene.rows(PROMPT, noun)}


def test_every_weight_is_drawn_and_text_is_seen(scene, prompts):
    for module in (scene.model.model.diffusion_model, scene.clip.cond_stage_model):
        for name, tensor in module.state_dict().items():
            tensor = tensor[:: 1 + len(tensor) // 5000] if tensor.ndim else tensor
            if tensor.is_floating_point():
                assert torch.isfinite(tensor).all(), name
                assert (tensor != 0).float().mean() > 0.99, name
    one, other = (scene.sample(scene.model, each, prompts[1], cfg=1.0) for each in prompts)
    assert torch.isfinite(one).all()
    assert relative_difference(one, other) > 0.01


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_without_a_bound_token_it_is_the_plain_model(scene, prompts, cfg):
    table = joint_value_table.JointValueTable(lambda options, rows: [{}] * rows)
    expected = scene.sample(scene.model, *prompts, cfg=cfg, batch=2)
    found = scene.sample(table.on(scene.model), *prompts, cfg=cfg, batch=2)
    assert relative_difference(found, expected) < TOLERANCE
    assert scene.sites == SITES[scene.family]
    calls = [site for site, *_ in table.calls]
    assert calls == SITES[scene.family] * (len(calls) // len(scene.sites))
    assert len(calls) >= scene.steps * len(scene.sites)


def test_text_value_in_its_own_place_changes_nothing(scene, prompts):
    same = scene.subject(value=lambda site, q, text: text[:, None].expand_as(q), scale=1.0)
    rows = reference.positive_only(slots_of(scene, same))
    expected = scene.sample(scene.model, *prompts)
    assert relative_difference(scene.sample_naively(rows, *prompts), expected) < TOLERANCE


def test_subject_is_seen(scene, prompts):
    plain = scene.sample(scene.model, *prompts, cfg=1.0)
    for mode in ("per_head", "all_heads", "none"):
        rows = reference.positive_only(slots_of(scene, scene.subject(mode=mode)))
        found = scene.sample_naively(rows, *prompts, cfg=1.0)
        assert torch.isfinite(found).all(), mode
        assert relative_difference(found, plain) > VISIBLE, mode


def test_one_nested_token_without_a_norm_is_plain_value_replacement(scene, prompts):
    subject = scene.subject(mode="none")
    (token,) = subject.tokens[:1]

    def its_value(site, q, text):
        value = (subject.site_weights(site)[1] @ token).view(-1, 1, 1, q.shape[-1])
        shared_by = len(q) // len(value)  # Lumina 2 has fewer heads of values than of queries
        return value.expand(-1, shared_by, q.shape[1], -1).flatten(0, 1)

    found, expected = (
        scene.sample_naively(reference.positive_only(slots_of(scene, each)), *prompts, cfg=1.0)
        for each in (replace(subject, tokens=token[None]), replace(subject, value=its_value))
    )
    assert relative_difference(found, expected) < TOLERANCE


def test_settings_act(scene, prompts):
    def sampled(*subjects):
        slots = {}
        for noun, subject in zip(("woman", "dog"), subjects, strict=False):
            slots.update(slots_of(scene, subject, noun))
        return scene.sample_naively(reference.positive_only(slots), *prompts, cfg=1.0)

    one = sampled(scene.subject())
    mask = torch.zeros(1, 36, 28)
    mask[:, :, 14:] = 1.0
    for other in (
        [scene.subject(strength=0.5)],
        [scene.subject(token_weight=3.0)],
        [scene.subject(mask=mask)],
        [scene.subject(scale=1.0)],
        [scene.subject(), scene.subject(seed=1)],
        [scene.subject(sites=lambda site: site == scene.sites[0])],
    ):
        assert relative_difference(sampled(*other), one) > VISIBLE / 10
    for nothing in (
        {"strength": 0.0},
        {"mask": torch.zeros(1, 36, 28), "token_weight": 3.0},
        {"window": (0.0, 0.0)},
    ):
        plain = scene.sample(scene.model, *prompts, cfg=1.0)
        assert relative_difference(sampled(scene.subject(**nothing)), plain) < TOLERANCE


@pytest.mark.parametrize("noun", ["woman", "black dog", "coffee shop"])
def test_rows_are_those_of_the_nouns_last_token(scene, noun):
    places = scene.token_places(PROMPT, noun)
    rows = scene.rows(PROMPT, noun)
    assert len(places) == (2 if scene.family == "sd3" else 1)
    with _tokens_alone(scene.clip.cond_stage_model, scene.model.model.diffusion_model):
        for (key, index), row in zip(places, rows, strict=True):
            assert noun.endswith(scene.token_at(PROMPT, (key, index)))
            tokens = scene.clip.tokenize(PROMPT)
            before = scene.context(scene.clip.encode_from_tokens_scheduled(tokens))
            token, *rest = tokens[key][0][index]
            tokens[key][0][index] = (token + 1, *rest)
            after = scene.context(scene.clip.encode_from_tokens_scheduled(tokens))
            assert (after != before).any(dim=-1).nonzero().flatten().tolist() == [row]


@contextlib.contextmanager
def _tokens_alone(*modules):
    """Text tokens do not see each other: a row is told by the token that alone can change it."""
    output = re.compile(r"(self_attn\.(o|out)_proj|SelfAttention\.o)\.weight$")
    kept = {}
    for parameter in (p for m in modules for n, p in m.named_parameters() if output.search(n)):
        kept[parameter] = parameter.data
        parameter.data = torch.zeros_like(parameter.data)
    try:
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


def _watched(scene, table, see):
    """The table on the model, and `see(plain, found) -> output` of each of its calls."""
    model = table.on(scene.model)
    transformer = model.model_options["transformer_options"]
    attend = transformer["optimized_attention_override"]

    def watch(func, *args, **kwargs):
        before = len(table.calls)
        found = attend(func, *args, **kwargs)
        return see(func(*args, **kwargs), found) if len(table.calls) > before else found

    transformer["optimized_attention_override"] = watch
    return model


def _first_call_of_each_site(scene, table, prompts, **options):
    """Plain output and the table's, `[rows, queries, inner]`, in the order of the sites."""
    pairs = []

    def see(plain, found):
        pairs.append((plain, found))
        return found

    scene.sample(_watched(scene, table, see), *prompts, cfg=1.0, **options)
    return pairs[: len(scene.sites)]


@pytest.mark.parametrize("pixel", [7, -1])
def test_each_of_the_pictures_queries_is_its_patch_of_the_latents(scene, prompts, pixel):
    table = joint_value_table.JointValueTable(reference.positive_only({}))

    def disturb(plain, found):
        site, picture, *_ = table.calls[-1]
        if site == scene.sites[-1]:  # behind it nothing attends
            found[:, picture[pixel]] += 1.0
        return found

    model = _watched(scene, table, disturb)
    before = scene.sample(scene.model, *prompts, cfg=1.0, steps=1)
    after = scene.sample(model, *prompts, cfg=1.0, steps=1)
    moved = ((after - before).abs().amax(1) > 1e-3).reshape(scene.frames, 9, 7)
    patches = torch.nn.functional.pad(moved, (0, 1, 0, 1)).unfold(1, 2, 2).unfold(2, 2, 2)
    moved_patches = patches.flatten(3).any(-1).flatten()
    assert moved_patches.nonzero().flatten().tolist() == [range(len(moved_patches))[pixel]]


def test_only_the_pictures_own_queries_see_a_subject(scene, prompts):
    subject = scene.subject(token_weight=1e4)  # that no pixel overlooks the token
    rows = reference.positive_only(slots_of(scene, subject), batch=2)
    table = joint_value_table.JointValueTable(rows)
    pixels = scene.frames * 5 * 4
    pairs = _first_call_of_each_site(scene, table, prompts, batch=2)
    assert len(pairs) == len(scene.sites)
    for (plain, found), (_, picture, queries, keys) in zip(pairs, table.calls, strict=False):
        assert plain.shape[1] == queries
        assert len(picture) == pixels
        moved = ((found - plain).norm(dim=-1) / plain.norm(dim=-1)) > 1e-4
        assert moved[:, picture.start : picture.stop].all()
        assert moved.sum() == 2 * pixels
        if not scene.sites[0].endswith("cross"):
            assert queries == keys


@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_reference_pictures_are_left_alone(family):
    scene = dit_scene.shared_scene(family)
    latent = torch.rand(scene.latents().shape, generator=torch.Generator().manual_seed(3))
    prompts = [
        pack.run_host(
            "ReferenceLatent", "nodes_edit_model", conditioning=each, latent={"samples": latent}
        )
        for each in (scene.encode(PROMPT), scene.encode(NEGATIVE))
    ]
    rows = reference.positive_only(slots_of(scene, scene.subject(token_weight=1e4)))
    table = joint_value_table.JointValueTable(rows)
    for plain, found in _first_call_of_each_site(scene, table, prompts):
        moved = (found - plain).abs().amax(dim=(0, 2)) > 1e-4
        assert moved.nonzero().flatten().tolist() == list(table.calls[0][1])
        assert len(moved) == scene.context(prompts[0]).shape[0] + 2 * 20


def test_padding_of_the_prompt_stays_masked():
    scene = dit_scene.shared_scene("qwen_image")
    ((rows, extras),) = scene.encode(PROMPT)
    mask = torch.ones(1, rows.shape[1])
    mask[:, -4:] = 0
    masked = [(rows, {**extras, "attention_mask": mask})]
    negative = scene.encode(NEGATIVE)
    expected = scene.sample(scene.model, masked, negative)
    found = scene.sample_naively(lambda options, num_rows: [{}] * num_rows, masked, negative)
    assert relative_difference(found, expected) < TOLERANCE
    assert relative_difference(found, scene.sample(scene.model, [(rows, extras)], negative)) > 1e-3


def test_another_attention_on_the_model_is_kept(scene, prompts):
    foreign = scene.model.clone()
    foreign.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda func, *args, **kwargs: func(*args, **kwargs).roll(1, dims=-1)
    )
    rows = reference.positive_only({})
    expected = scene.sample(foreign, *prompts, cfg=1.0)
    found = scene.sample_naively(rows, *prompts, model=foreign, cfg=1.0)
    assert relative_difference(found, expected) < TOLERANCE
    assert relative_difference(expected, scene.sample(scene.model, *prompts, cfg=1.0)) > VISIBLE
    rows = reference.positive_only(slots_of(scene, scene.subject()))
    found = scene.sample_naively(rows, *prompts, model=foreign, cfg=1.0)
    assert relative_difference(found, expected) > VISIBLE
