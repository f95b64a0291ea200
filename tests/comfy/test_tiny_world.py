"""The tiny world's pictures and words, and its training on ComfyUI's UNet for a few steps."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")
from pack import ROOT

sys.path += [str(ROOT), str(ROOT / "demo")]
from safetensors.torch import load_file
from tiny_world import models, world

from lab.training import data, text_gain
from lab.training.base_model import (
    BaseTrainer,
    BaseTraining,
    base_loss,
    untrained_model,
)
from lab.training.encoder import encoder_config, train_encoder
from lab.training.host import BaseModel, TinyWorldHost, vision_model
from nested_core.training import base_model as training_base_model
from nested_core.training.base_model import SUBJECT, Caption
from nested_core.training.data.batches import Data, Stripe
from nested_core.training.processes import make_accelerator


@pytest.fixture(autouse=True)
def _with_gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def placed(place: str = "left", kind: str = "person", seed: int = 0) -> world.Placed:
    return world.Placed(world.random_identity(draws(seed), kind), place)


SCENE = world.Scene("photo", "beach", "sun")


@pytest.mark.parametrize("kind", world.KINDS)
@pytest.mark.parametrize("style", world.STYLES)
def test_an_identity_changes_the_picture_on_the_subject_alone(kind, style) -> None:
    scene = world.Scene(style, "city", "kite")
    one, other = (placed("centre", kind, seed) for seed in (1, 2))
    pictures = [world.draw([subject], scene) for subject in (one, other)]
    mask = world.subject_mask(one)
    assert np.array_equal(mask, world.subject_mask(other))
    assert np.array_equal(pictures[0][~mask], pictures[1][~mask])
    assert np.abs(pictures[0] - pictures[1])[mask].mean() > 0.02


def test_every_word_of_the_scene_changes_the_picture() -> None:
    scenes = [
        world.Scene(*each)
        for each in (
            ("photo", "beach", "sun"),
            ("night", "beach", "sun"),
            ("photo", "city", "sun"),
            ("photo", "beach", "moon"),
        )
    ]
    pictures = [world.draw([placed()], scene) for scene in scenes]
    pictures.append(world.draw([placed("right")], SCENE))
    for index, picture in enumerate(pictures):
        assert picture.shape == (32, 32, 3)
        assert 0.0 <= picture.min() < picture.max() <= 1.0
        assert all(np.abs(picture - other).max() > 0.05 for other in pictures[:index])


def test_subjects_at_different_places_do_not_overlap() -> None:
    masks = [
        world.subject_mask(placed(place, kind))
        for place, kind in (("left", "person"), ("centre", "dog"), ("right", "person"))
    ]
    assert (masks[0] & masks[2]).sum() == 0
    assert all((masks[1] & masks[n]).any(axis=0).sum() <= 2 for n in (0, 2))  # columns


def test_captions_say_what_is_named_and_nothing_else() -> None:
    identity = world.Identity(
        "dog", {"ears": "red", "fur": "blue", "scarf": "pink", "paws": "red"}, {}
    )
    subject = world.Placed(identity, "right")
    assert world.caption([subject], SCENE) == "a photo in the beach under a sun, at the right dog"
    named = world.caption([subject], world.Scene("night", "city", "nothing"), [["fur", "paws"]])
    assert named == "a night in the city, at the right dog with blue fur and red paws"
    both = world.caption([placed(), subject], SCENE, nouns=["<anna>", "<rex>"])
    assert both.endswith("under a sun, at the left <anna>, at the right <rex>")


def test_a_subject_of_one_colour_is_called_by_it() -> None:
    said = [data._described(draws(seed), placed(seed=seed)) for seed in range(40)]
    tinted = [each for each in said if " " in each[2]]
    assert 8 < len(tinted) < 24
    for subject, others, noun in tinted:
        colour, _ = noun.split()
        for part, name in subject.identity.names.items():
            assert name == colour or part in others


def test_the_world_grows() -> None:
    early, late = (data.base_examples(0, first, 40).captions for first in (0, 100_000))
    assert all(" at the centre" in each for each in early if each)
    assert not any(word in " ".join(early) for word in ("dog", "night", "left"))
    assert all(word in " ".join(late) for word in ("dog", "night", "left", "person"))
    assert any(each.count(" at the ") == 3 for each in late)


@pytest.mark.parametrize("word", ["zebra", "aardvark", "coffee"])
def test_a_word_that_the_world_does_not_know_is_an_error(word) -> None:
    with pytest.raises(ValueError, match=f"a {word}.*does not know"):
        BaseModel().rows([Caption("a photo", ""), Caption(f"a {word}", "")])


@pytest.mark.parametrize("alone", [True, False])
def test_the_unet_sees_the_text_or_its_things_alone(alone) -> None:
    model = BaseModel()
    rows, _ = model.rows([Caption("a photo in the city, at the left red dog", "")])
    shown = model.context(rows, torch.tensor([alone])).abs().sum(-1)[0] > 0
    assert int(shown.sum()) == (4 if alone else 13)
    assert bool(shown[0]) is not alone  # the start of the text
    assert bool(shown[11])  # the dog


def test_data_of_two_processes_is_the_data_of_one() -> None:
    assert isinstance(data.SubjectData(4), Data)
    alone = next(data.SubjectData(4).batches(None, Stripe()))
    halves = [next(data.SubjectData(2).batches(None, Stripe(n, 2))) for n in (0, 1)]
    assert torch.equal(alone.pixels, torch.cat([half.pixels for half in halves]))
    assert list(alone.captions) == [each for half in halves for each in half.captions]
    stream = data.SubjectData(4).batches(None, Stripe())
    next(stream)
    later = next(data.SubjectData(4).batches(alone.resume, Stripe()))
    assert torch.equal(next(stream).pixels, later.pixels)


def test_captions_of_the_encoders_data_never_say_who_it_is() -> None:
    batch = next(data.SubjectData(64, drop_text=0.0).batches(None, Stripe()))
    for caption in batch.captions:
        assert SUBJECT in caption.text
        assert not set(caption.text.split()) & set(world.PALETTE)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Untrained weights of everything, in the files that are shipped."""
    folder = tmp_path_factory.mktemp("weights")
    model = untrained_model(0)
    with torch.no_grad():  # the blocks start as the identity: there nothing would be seen
        for parameter in model.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save(folder / models.BASE_FILE, torch.float16)  # as ComfyUI keeps text encoders
    from safetensors.torch import save_file

    vision = {name: each.contiguous() for name, each in vision_model().state_dict().items()}
    save_file(vision, folder / models.VISION_FILE)
    return folder


def test_the_base_model_is_read_back_bit_for_bit(weights) -> None:
    model, again = BaseModel(), BaseModel()
    model.load(weights / models.BASE_FILE)
    model.save(weights / "again.safetensors", torch.float32)
    again.load(weights / "again.safetensors")
    states = [{k: v for k, v in each.state_dict().items()} for each in (model, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_and_comfyui_predict_the_same(weights) -> None:
    host = TinyWorldHost(weights)
    assert isinstance(host, training_base_model.BaseModel)
    text = "a photo in the city, at the left person with red hat"
    conditions = host.encode_captions([Caption(text.replace("person", SUBJECT), "person")], [])
    assert conditions.positions.tolist() == [10]
    clip = models.load_clip(weights)
    theirs = clip.encode_from_tokens(clip.tokenize(text))
    assert torch.allclose(conditions.context, theirs, atol=1e-5)
    noisy, sigma = torch.randn(1, 48, 8, 8), torch.tensor([0.7])
    base = models.load_model(weights).model
    with torch.no_grad():
        denoised = base.apply_model(noisy, sigma, c_crossattn=conditions.context)
        prediction = host.predict(noisy, host.schedule.timesteps(sigma), conditions, None)
    ours, _ = host.schedule.parts(noisy, prediction, sigma)
    assert torch.allclose(ours, denoised, atol=1e-4)


def test_comfyui_samples_at_the_times_that_were_trained(weights) -> None:
    sampling = models.load_model(weights).get_model_object("model_sampling")
    percents = torch.linspace(0.0, 0.99, 12)
    ours = TinyWorldHost.schedule.times(1.0 - percents)
    theirs = [sampling.percent_to_sigma(float(percent)) for percent in percents]
    assert torch.allclose(ours, torch.tensor(theirs), atol=1e-6)


def test_the_base_models_run_goes_on_bit_for_bit(tmp_path) -> None:
    settings = BaseTraining(
        steps=4, batch_size=2, warmup_steps=1, save_every=100, log_every=1, text_gain_every=100
    )

    def run(name: str, examples=data.base_examples) -> bool:
        accelerator = make_accelerator(encoder_config(tmp_path))
        trainer = BaseTrainer(settings, tmp_path / name, accelerator, examples=examples)
        finished = trainer.run()
        accelerator.free_memory()
        return finished

    assert run("whole")

    def asked_to_stop(seed: int, first: int, count: int) -> data.BaseExamples:
        if first == 2:  # the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return data.base_examples(seed, first, count)

    assert not run("halves", asked_to_stop)
    assert run("halves")
    whole, halves = (load_file(tmp_path / name / models.BASE_FILE) for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    lines = [
        (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "halves")
    ]
    assert [json.loads(line)["loss"] for line in lines[0]] == [
        json.loads(line)["loss"] for line in lines[1]
    ]


def test_a_subject_changes_the_prediction_and_trains(weights, tmp_path) -> None:
    config = encoder_config(
        tmp_path / "run", steps=2, batch_size=2, warmup_steps=0, learning_rate=1e-2
    )
    assert train_encoder(config, TinyWorldHost(weights)) == 0
    encoder = load_file(tmp_path / "run" / models.ENCODER_FILE)
    own = dict(load_file(weights / models.BASE_FILE))
    started_as = own["unet.middle_block.1.transformer_blocks.0.attn2.to_v.weight"]
    trained = encoder["sites.middle.0.0.to_v.weight"]
    assert 0.0 < (trained - started_as).abs().max() < 0.1


def test_the_text_gain_is_measured_on_and_off_the_subject(monkeypatch) -> None:
    model = SimpleNamespace()

    def knows_everything_but_colours(_: object, captions: list[str]) -> torch.Tensor:
        named = "with" in captions[0]
        right = believed["right"]
        return right if named else right + 0.1 * believed["masks"][..., None]

    believed: dict[str, torch.Tensor] = {}
    generator = np.random.default_rng(text_gain.UNSEEN)
    casts = [data.random_cast(generator, 1) for _ in range(8)]
    scenes = [world.random_scene(generator, "photo") for _ in casts]
    pictures = [world.draw(*each) for each in zip(casts, scenes, strict=True)]
    believed["right"] = torch.tensor(np.stack(pictures))
    masks = [world.subject_mask(cast[0]) for cast in casts]
    believed["masks"] = torch.tensor(np.stack(masks)).float()
    monkeypatch.setattr(text_gain, "_believed", knows_everything_but_colours)
    figures = text_gain.text_gain(model, count=8)  # type: ignore[arg-type]
    assert figures["subject_none"] == pytest.approx(20.0, abs=1e-3)
    assert figures["background_none"] == figures["background_all"] == 100.0
    assert figures["subject_all"] == 100.0


def test_the_base_loss_weighs_the_subjects_more() -> None:
    batch = data.base_examples(0, 0, 2)

    class Knows(torch.nn.Module):
        """Predicts everything but one pixel's error."""

        def __init__(self, on_subject: bool) -> None:
            super().__init__()
            self.on_subject = on_subject

        def forward(self, noisy, times, rows, things_alone):
            sigma = (times / 1000.0).view(-1, 1, 1, 1)
            latents = torch.nn.functional.pixel_unshuffle(batch.pixels, models.BLOCK)
            target = (noisy - latents) / sigma
            cells = torch.nn.functional.interpolate(batch.masks, size=(8, 8), mode="area")
            wrong = cells if self.on_subject else 1.0 - cells
            return target + 0.1 * (wrong == 1.0)

    settings = {n: BaseTraining(steps=1, subject_weight=n) for n in (1.0, 3.0)}
    rows = torch.zeros(2, 77, dtype=torch.long)
    losses = {
        (on, n): float(base_loss(Knows(on), rows, batch, settings[n], seed=0))
        for on in (True, False)
        for n in settings
    }
    assert losses[True, 3.0] > 1.3 * losses[True, 1.0]
    assert losses[False, 3.0] < losses[False, 1.0]
