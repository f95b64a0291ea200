"""Flow transformers as base models: what they predict, what is trained, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_flow_models
import torch
from accelerate import Accelerator
from flow_examples import EXAMPLES, example
from tiny_flow_models import tiny_flow_pipeline
from tiny_models import tiny_image_encoder
from torch import Tensor

from nested_core.attention import ValueNorm
from nested_core.checkpoint import load_encoder
from nested_core.errors import HostError
from nested_core.training.__main__ import main
from nested_core.training.base_model import BaseModel, Caption, PictureSize, TextConditions
from nested_core.training.config import TrainingConfig
from nested_core.training.data import open_data
from nested_core.training.diffusers_model import load_base_model
from nested_core.training.errors import TrainingError
from nested_core.training.flow_models import FLOW_FAMILIES
from nested_core.training.flow_models.model import TransformerModel
from nested_core.training.nested_attention import NestedSubjects
from nested_core.training.noise_schedule import NoiseSchedule
from nested_core.training.trainer import Trainer

FAMILIES = tuple(tiny_flow_models.PIPELINES)
EACH = pytest.mark.parametrize("family", FAMILIES)
SIZE = PictureSize(64, 64, 0, 0, 64, 64)
CAPTIONS = [Caption("a photo of {subject} in Rome", "old man"), Caption("{subject}", "cat")]


def make_model(family: str, guidance: float = 1.0, **transformer: Any) -> TransformerModel:
    (description,) = (each for each in FLOW_FAMILIES if each.base == family)
    pipeline = tiny_flow_pipeline(family, **transformer)
    vision = tiny_image_encoder()
    return TransformerModel(description, pipeline, vision, NoiseSchedule("flow"), guidance)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_subjects(model: TransformerModel, text: TextConditions, seed: int = 0) -> NestedSubjects:
    keys_values = {
        site.path: (
            random(2, 3, width, seed=seed).requires_grad_(),
            random(2, 3, width, seed=seed + 1).requires_grad_(),
        )
        for site, width in model.site_dims.items()
    }
    return NestedSubjects(keys_values, text.positions, ValueNorm(), "model_norm")


@EACH
def test_the_layers_are_diffusers_own_where_no_subject_is(family) -> None:
    model = make_model(family)
    text = model.encode_captions(CAPTIONS, [SIZE] * 2)
    noisy, times = random(2, 16, 8, 6), torch.tensor([100.0, 700.0])
    ours = model.predict(noisy, times, text, None)
    model.pipeline.transformer = model.transformer = tiny_flow_pipeline(family).transformer
    theirs = model.predict(noisy, times, text, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@EACH
def test_recomputed_activations_give_the_same_gradients(family) -> None:
    """Also where another call has been made before the backward pass."""
    model = make_model(family)
    text = model.encode_captions(CAPTIONS, [SIZE] * 2)
    noisy, times = random(2, 16, 8, 6), torch.tensor([100.0, 700.0])
    gradients, losses = [], []
    for saves_memory in (False, True):
        if saves_memory:
            model.save_memory()
        both = [some_subjects(model, text, seed) for seed in (1, 5)]
        outputs = [model.predict(noisy, times, text, each) for each in both]
        losses.append(outputs[0].square().mean() + 2 * outputs[1].square().mean())
        losses[-1].backward()
        weights = [w for each in both for pair in each.keys_values.values() for w in pair]
        assert all(each.grad.abs().max() > 0 for each in weights)
        gradients.append([each.grad for each in weights])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for plain, recomputed in zip(*gradients, strict=True):
        assert (recomputed - plain).norm() <= 1e-6 * plain.norm()


@EACH
def test_a_row_is_the_same_alone(family) -> None:
    """Shorter captions beside longer ones, too."""
    model = make_model(family)
    noisy, times = random(2, 16, 8, 6), torch.tensor([100.0, 700.0])
    text = model.encode_captions(CAPTIONS, [SIZE] * 2)
    subjects = some_subjects(model, text)
    both = model.predict(noisy, times, text, subjects)
    for row, caption in enumerate(CAPTIONS):
        own = model.encode_captions([caption], [SIZE])
        keys_values = {
            path: (key[row : row + 1], value[row : row + 1])
            for path, (key, value) in subjects.keys_values.items()
        }
        alone = NestedSubjects(keys_values, own.positions, ValueNorm(), "model_norm")
        part = slice(row, row + 1)
        found = model.predict(noisy[part], times[part], own, alone)
        torch.testing.assert_close(found, both[part], rtol=1e-3, atol=1e-3)
        without = model.predict(noisy[part], times[part], own, None)
        assert (found - without).abs().max() > 1e-2


@EACH
def test_a_noun_out_of_reach_leaves_the_noun_alone(family, caplog) -> None:
    model = make_model(family)
    far = Caption("very " * 1200 + "old {subject}", "person")
    text = model.encode_captions([far, Caption("{subject}", "person")], [SIZE] * 2)
    assert torch.equal(text.positions[0], text.positions[1])
    torch.testing.assert_close(text.context[0], text.context[1])
    assert "out of reach" in caplog.text


@EACH
def test_latents_are_drawn_by_row(family) -> None:
    model = make_model(family)
    pixels = random(2, 3, 64, 64).clamp(-1, 1)

    def encode(rows: Tensor, seeds: list[int]) -> Tensor:
        return model.encode_pixels(rows, [torch.Generator().manual_seed(s) for s in seeds])

    both = encode(pixels, [1, 2])
    assert both.shape == (2, 16, 8, 8)
    torch.testing.assert_close(both[1:], encode(pixels[1:], [2]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[1:], encode(pixels[1:], [3]), atol=1e-3)
    assert model.decode_latents(both).shape == (2, 3, 64, 64)
    with pytest.raises(TrainingError, match="resolution is 72, expected a multiple of 16"):
        encode(torch.zeros(2, 3, 72, 72), [1, 2])


def test_each_family_has_an_example(tmp_path) -> None:
    assert sorted(EXAMPLES) == sorted(FAMILIES)
    assert [each.base for each in FLOW_FAMILIES if each.base not in FAMILIES] == []


# What of an example is not about sizes, paths and hours.
OF_THE_EXAMPLE = ("nested_key", "gradient_checkpointing", "distilled_guidance", "shard_base")


@EACH
def test_only_the_encoder_changes(family, run_settings, tmp_path) -> None:
    """By the settings of the documentation. It starts as the base model's own projections."""
    settings = example(family, tmp_path)
    assert settings.get("cache", "disk") == "disk"
    chosen = {name: settings[name] for name in OF_THE_EXAMPLE if name in settings}
    config = TrainingConfig(**run_settings(family, **chosen))
    base_model = load_base_model(
        config.base, config.image_encoder, guidance=config.distilled_guidance
    )
    assert isinstance(base_model, BaseModel)
    data = open_data(config, base_model.image_encoder.image_size)
    trainer = Trainer(config, base_model, data, Accelerator(cpu=True))
    trainer.begin(resume=False)
    for site in base_model.site_dims:
        own = trainer.model.encoder.projections(site)
        to_k, to_v = base_model.projection_weights(site)
        assert torch.equal(own.to_k.weight, to_k)
        assert torch.equal(own.to_v.weight, to_v)
    frozen = [w.clone() for m in base_model.frozen_modules() for w in m.state_dict().values()]
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    assert trainer.run() == 0
    after = [w for m in base_model.frozen_modules() for w in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    left = [name for name, each in trainer.model.state_dict().items() if each.equal(before[name])]
    assert left == []
    encoder = load_encoder(Path(config.output, "encoder.safetensors"))
    assert encoder.site_dims == base_model.site_dims
    assert (encoder.config.base, encoder.config.family) == (family, base_model.family.name)
    assert encoder.config.nested_key == config.nested_key


def test_the_command_trains_and_draws(run_settings, tmp_path) -> None:
    settings = run_settings("flux", sample_every=2, sample_steps=1, nested_key="model_norm")
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert main(["--config", str(tmp_path / "run.json")]) == 0
    assert (tmp_path / "run" / "samples" / "step-00000002.png").exists()
    encoder = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert encoder.config.nested_key == "model_norm"


def test_a_unet_has_no_norm_for_nested_keys(make_config) -> None:
    config = make_config(nested_key="model_norm")
    base_model = load_base_model(config.base, config.image_encoder)
    data = open_data(config, base_model.image_encoder.image_size)
    with pytest.raises(TrainingError, match="nested_key is model_norm, expected plain"):
        Trainer(config, base_model, data, Accelerator(cpu=True))


def test_a_guidance_distilled_model_is_told_its_guidance() -> None:
    noisy, times = random(1, 16, 8, 8), torch.tensor([300.0])

    def predict(guidance: float, **transformer: Any) -> Tensor:
        model = make_model("flux", guidance, **transformer)
        text = model.encode_captions(CAPTIONS[:1], [SIZE])
        return model.predict(noisy, times, text, None)

    assert not torch.allclose(predict(1.0), predict(4.0), atol=1e-2)
    schnell = {"guidance_embeds": False}
    assert torch.equal(predict(1.0, **schnell), predict(4.0, **schnell))


def test_a_pipeline_that_is_not_known_is_refused(tmp_path, image_encoder_folder) -> None:
    index = {"_class_name": "AuraFlowPipeline", "transformer": ["diffusers", "X"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(TrainingError, match=r"is a AuraFlowPipeline.*SD1.5, SDXL, Flux.1"):
        load_base_model(str(tmp_path), str(image_encoder_folder))


def test_another_layout_is_refused() -> None:
    model = make_model("flux")
    model.pipeline.transformer = torch.nn.Linear(2, 2)
    description = model.description
    with pytest.raises(HostError, match="Linear has 0 attention layers"):
        TransformerModel(description, model.pipeline, model.vision, model.schedule)
