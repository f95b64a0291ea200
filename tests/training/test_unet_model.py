"""The diffusers base model: captions and nouns, sites, and attention against a naive value table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import TEXT_WIDTH, tiny_image_encoder, tiny_pipeline, tiny_unet

from nested_core.attention import ValueNorm
from nested_core.errors import HostError
from nested_core.families.unet_sites import describe_sites
from nested_core.training.base_model import Caption, PictureSize
from nested_core.training.errors import TrainingError
from nested_core.training.nested_attention import CrossAttentionProcessor, NestedSubjects
from nested_core.training.noise_schedule import read_schedule
from nested_core.training.unet_model import UNetModel, find_sites

SIZE = PictureSize(90, 120, 3, 5, 64, 64)


@pytest.fixture(params=["sd15", "sdxl"])
def base_model(request, tokenizer_folder) -> UNetModel:
    return UNetModel(tiny_pipeline(request.param, tokenizer_folder), tiny_image_encoder())


def pipeline_of(base_model, tokenizer_folder):
    return tiny_pipeline(base_model.base, tokenizer_folder)


def test_sites_have_comfyuis_numbers() -> None:
    found = {family: describe_sites(find_sites(tiny_unet(family))) for family in TEXT_WIDTH}
    assert found["sd15"] == "d1.0 d3.0 m0.0 u0.0 u1.0 u2.0 u3.0"
    assert found["sdxl"] == "d3.0 d5.0-1 m0.0-1 u0.0-1 u1.0-1 u2.0 u3.0"


def test_a_model_without_cross_attention_is_refused() -> None:
    with pytest.raises(HostError, match="Linear has 0 cross-attention layers"):
        find_sites(torch.nn.Linear(2, 2))


def test_captions_are_encoded_as_the_pipelines_do(base_model, tokenizer_folder) -> None:
    captions = [Caption("a photo of {subject} in Rome", "old man"), Caption("", "")]
    ours = base_model.encode_captions(captions, [SIZE, SIZE])
    pipeline = pipeline_of(base_model, tokenizer_folder)
    texts = [caption.plain for caption in captions]
    encoded = pipeline.encode_prompt(
        texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(ours.context, encoded[0], atol=1e-5)
    assert ours.positions.tolist() == [5, -1]
    if base_model.base == "sdxl":
        assert torch.allclose(ours.extras["text_embeds"], encoded[2], atol=1e-5)
        assert ours.extras["time_ids"][0].tolist() == [90, 120, 3, 5, 64, 64]


@pytest.mark.parametrize(
    ("text", "noun", "position"),
    [
        ("{subject}", "person", 1),
        ("{subject} by the sea", "woman", 1),
        ("a {subject}, smiling", "Woman", 2),
        ("photo: {subject}'s hat", "cat", 3),
        ("a {subject}", "tamandua", 4),
        ("two  words: {subject}", "golden retriever", 5),
    ],
)
def test_the_nouns_last_token_is_found(tokenizer_folder, text, noun, position) -> None:
    base_model = UNetModel(tiny_pipeline("sd15", tokenizer_folder), tiny_image_encoder())
    assert base_model.encode_captions([Caption(text, noun)], [SIZE]).positions.tolist() == [
        position
    ]


def test_a_noun_out_of_reach_leaves_the_noun_alone(tokenizer_folder, caplog) -> None:
    base_model = UNetModel(tiny_pipeline("sd15", tokenizer_folder), tiny_image_encoder())
    far = Caption("very " * 80 + "old {subject}", "person")
    text = base_model.encode_captions([far, Caption("{subject}", "person")], [SIZE, SIZE])
    assert text.positions.tolist() == [1, 1]
    assert torch.equal(text.context[0], text.context[1])
    assert "out of reach" in caplog.text


def test_without_subjects_the_unet_is_diffusers_own(base_model, tokenizer_folder) -> None:
    text = base_model.encode_captions([Caption("a cat", "")] * 2, [SIZE, SIZE])
    noisy, times = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    plain = pipeline_of(base_model, tokenizer_folder).unet
    expected = plain(noisy, times, text.context, added_cond_kwargs=dict(text.extras)).sample
    assert torch.allclose(base_model.predict(noisy, times, text, None), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["per_head", "all_heads", "none"])
def test_a_site_computes_the_papers_value_table(mode) -> None:
    heads, width, pixels, words, tokens = 2, 4, 5, 6, 3
    site = next(iter(find_sites(tiny_unet("sd15"))))
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    q, k, v = random(2, pixels, 8), random(2, words, 8), random(2, words, 8)
    nested = random(2, tokens, 8), random(2, tokens, 8)
    positions, norm = torch.tensor([1, 4]), ValueNorm(mode, 2.0)
    attention = SimpleNamespace(
        heads=heads,
        to_q=lambda _: q,
        to_k=lambda _: k,
        to_v=lambda _: v,
        to_out=[lambda x: x, lambda x: x],
    )
    subjects = NestedSubjects({site.path: nested}, positions, norm)
    out = CrossAttentionProcessor(site)(attention, q, k, nested_subjects=subjects)

    def split(x):
        return x.double().unflatten(-1, (heads, width)).transpose(1, 2)

    query, key, value, nested_key, nested_value = map(split, (q, k, v, *nested))
    table = value[:, :, None].expand(-1, -1, pixels, -1, -1).clone()
    stars = (query @ nested_key.mT / width**0.5).softmax(-1) @ nested_value
    for row, s in enumerate(positions.tolist()):
        text, star = value[row, :, s], stars[row]
        if mode == "per_head":
            star = 2 * star / star.norm(dim=-1, keepdim=True) * text.norm(dim=-1)[:, None, None]
        elif mode == "all_heads":
            star = 2 * star / star.norm(dim=(0, 2), keepdim=True) * text.norm()
        table[row, :, :, s] = star
    weights = (query @ key.mT / width**0.5).softmax(-1)
    expected = torch.einsum("bhpt,bhptd->bphd", weights, table).flatten(2)
    assert torch.allclose(out.double(), expected, atol=1e-5)


def test_latents_are_drawn_by_row(base_model) -> None:
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1

    def encode(rows, seeds):
        return base_model.encode_pixels(rows, [torch.Generator().manual_seed(s) for s in seeds])

    both = encode(pixels, [1, 2])
    assert both.shape == (2, 4, 8, 8)
    assert torch.allclose(both[1:], encode(pixels[1:], [2]), atol=1e-5)
    assert not torch.allclose(both[1:], encode(pixels[1:], [3]), atol=1e-3)
    assert base_model.decode_latents(both).shape == (2, 3, 64, 64)


def test_flow_matching_keeps_the_schedulers_shift() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = read_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert (schedule.prediction, schedule.shift) == ("flow", 3.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_schedule_is_the_schedulers(prediction, tokenizer_folder) -> None:
    scheduler = tiny_pipeline("sd15", tokenizer_folder, prediction_type=prediction).scheduler
    schedule = read_schedule(scheduler)
    assert schedule.prediction == prediction
    x, n = torch.randn(2, 1, 4, 8, 8).unbind(0)
    times = torch.tensor([321])
    assert torch.allclose(schedule.mix(x, n, times), scheduler.add_noise(x, n, times), atol=1e-6)
    if prediction == "v_prediction":
        velocity = scheduler.get_velocity(x, n, times)
        assert torch.allclose(schedule.target(x, n, times), velocity, atol=1e-6)


def test_flow_matching_is_seen() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert read_schedule(scheduler).prediction == "flow"


def test_another_prediction_is_refused(tokenizer_folder) -> None:
    pipeline = tiny_pipeline("sd15", tokenizer_folder, prediction_type="sample")
    with pytest.raises(TrainingError, match="predicts 'sample', expected epsilon"):
        UNetModel(pipeline, None)
