"""The tiny world's models do in ComfyUI, through its nodes, what they do while they are trained."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.sample
import folder_paths
import numpy as np
import pack
import pytest
import scenes
import tiny
import torch
from safetensors.torch import save_file

import nodes as host_nodes

sys.path += [str(pack.ROOT), str(pack.ROOT / "demo")]
from tiny_world import models, world

from lab.training import host
from nested_core.attention import ValueNorm
from nested_core.checkpoint import load_encoder, save_encoder
from nested_core.config import EncoderConfig, ImageEncoderConfig, ResamplerConfig
from nested_core.encoder import Encoder
from nested_core.preprocess import clip_pixels
from nested_core.training.base_model import Caption
from nested_core.training.encoders import KeyValueEncoder
from nested_core.training.nested_attention import NestedSubjects

NODES = pack.ROOT / "demo" / "custom_nodes" / "tiny_world"
_ANNA = world.Identity("person", {"hat": "red", "hair": "pink"}, {})
TEXT = world.caption(
    [world.Placed(_ANNA, "left")],
    world.Scene("photo", "forest", "sun"),
    named=[["hat", "hair"]],
    nouns=["{subject}"],
)
ENCODER_NAME = "tiny_world_random.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of random weights, as training writes them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    base = host.BaseModel()
    tiny.randomise(base.denoiser, seed=1, gain=1.7)
    base.save(folder / models.BASE_FILE, torch.float16)
    # ComfyUI keeps text and image encoders in half precision, whatever the file has.
    vision = {name: each.half() for name, each in host.vision_model().state_dict().items()}
    save_file(vision, folder / models.VISION_FILE)
    save_encoder(_random_encoder(base), folder / models.ENCODER_FILE)
    return folder


def _random_encoder(base: host.BaseModel) -> Encoder:
    hidden = models.VISION_CONFIG["hidden_size"]
    config = EncoderConfig(
        noun="person",
        base="tiny_world",
        image_encoder=ImageEncoderConfig(hidden_size=hidden, image_size=world.SIZE),
        resampler=ResamplerConfig(hidden, 32, 1, 8, 2, 5, models.TEXT_DIM, 2),
        value_norm=ValueNorm("per_head", 2.0),
    )
    dims = base.site_dims()
    return Encoder(config, dims, name=ENCODER_NAME)


@pytest.fixture(scope="module")
def loaded(folder) -> SimpleNamespace:
    """What the pack's nodes load from the files."""
    before = os.environ.get("TINY_WORLD_WEIGHTS")
    os.environ["TINY_WORLD_WEIGHTS"] = str(folder)
    try:
        assert asyncio.run(host_nodes.load_custom_node(str(NODES))), "the pack did not load"
    finally:
        del os.environ["TINY_WORLD_WEIGHTS"]
        if before is not None:
            os.environ["TINY_WORLD_WEIGHTS"] = before
    model, clip, vae = _run("LoadCheckpoint")
    return SimpleNamespace(model=model, clip=clip, vae=vae, vision=_run("LoadClipVision")[0])


def _run(name: str) -> tuple:
    return host_nodes.NODE_CLASS_MAPPINGS[f"TinyWorld_{name}"].execute().result


@pytest.fixture(scope="module")
def trained(folder) -> host.TinyWorldHost:
    """The same files as the trainer reads them."""
    return host.TinyWorldHost(folder)


def _photograph() -> torch.Tensor:
    draws = np.random.default_rng(0)
    subject = world.Placed(world.random_identity(draws, "person"), "centre")
    return torch.from_numpy(world.draw([subject], world.random_scene(draws, "photo")))[None]


@pytest.mark.smoke
@pytest.mark.parametrize("text", ["", "a sketch", TEXT.format(subject="person")])
def test_the_text_encoder_reads_as_in_training(loaded, trained, text) -> None:
    ((theirs, _),) = pack.run_host("CLIPTextEncode", clip=loaded.clip, text=text)
    ours = trained.encode_captions([Caption(text, "")], []).context
    assert ours.std() > 0.1
    assert scenes.relative_difference(ours, theirs) < 1e-5


@pytest.mark.smoke
def test_the_image_encoder_sees_as_in_training(loaded, trained) -> None:
    photograph = _photograph()
    output = pack.run_host(
        "CLIPVisionEncode", clip_vision=loaded.vision, image=photograph, crop="center"
    )
    pixels = clip_pixels(photograph, world.SIZE)
    for state, name in (
        ("penultimate", "penultimate_hidden_states"),
        ("last", "last_hidden_state"),
    ):
        ours = trained.patch_features(pixels, state)
        assert scenes.relative_difference(ours, output[name]) < 1e-5
    assert output["penultimate_hidden_states"].shape == (1, 65, 96)


@pytest.mark.smoke
def test_a_picture_survives_the_vae_and_comes_in_blocks(loaded) -> None:
    picture = torch.arange(32 * 32 * 3).reshape(1, 32, 32, 3) % 256 / 255.0
    latents = pack.run_host("VAEEncode", pixels=picture, vae=loaded.vae)["samples"]
    back = pack.run_host("VAEDecode", samples={"samples": latents}, vae=loaded.vae)
    assert latents.shape == (1, 48, 8, 8)
    assert latents.aminmax() == (-1.0, 1.0)
    assert torch.equal((back * 255).round(), (picture * 255).round())


def test_the_vae_cuts_off_what_is_no_block(loaded) -> None:
    latents = pack.run_host("VAEEncode", pixels=torch.rand(2, 38, 33, 4), vae=loaded.vae)
    assert latents["samples"].shape == (2, 48, 9, 8)


def test_sampling_draws_its_times_as_training_does(loaded, trained) -> None:
    times = torch.arange(1, 1001) / 1000
    sigmas = loaded.model.get_model_object("model_sampling").sigmas
    assert torch.allclose(sigmas, trained.schedule.times(times))


def _sample(model, clip, text: str, steps: int, cfg: float) -> torch.Tensor:
    return pack.run_host(
        "KSampler",
        model=model,
        positive=pack.run_host("CLIPTextEncode", clip=clip, text=text),
        negative=pack.run_host("CLIPTextEncode", clip=clip, text=""),
        latent_image=pack.run_host("EmptyLatentImage", width=32, height=32, batch_size=2),
        seed=5,
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )["samples"]


def _euler(trained: host.TinyWorldHost, caption: Caption, subjects, steps: int, cfg: float):
    """Euler's method by hand, on the times of training: dx/dt = v(x, t), from t = 1 to 0."""
    latents = comfy.sample.prepare_noise(torch.zeros(2, 48, 8, 8), 5)
    uniform = 1.0 - torch.arange(steps + 1) / steps
    times = trained.schedule.times(uniform)
    words, nothing = (
        trained.encode_captions([each] * 2, []) for each in (caption, Caption("", ""))
    )
    for time, following in itertools.pairwise(times):
        told = trained.schedule.timesteps(time.expand(2))
        conditional = trained.predict(latents, told, words, subjects)
        unconditional = trained.predict(latents, told, nothing, None)
        velocity = unconditional + cfg * (conditional - unconditional)
        latents = latents + (following - time) * velocity
    return latents


@pytest.mark.smoke
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_the_sampler_follows_what_was_trained(loaded, trained, cfg) -> None:
    caption = Caption(TEXT.format(subject="person"), "")
    theirs = _sample(loaded.model, loaded.clip, caption.text, steps=4, cfg=cfg)
    ours = _euler(trained, caption, None, steps=4, cfg=cfg)
    assert theirs.shape == (2, 48, 8, 8)
    assert scenes.relative_difference(ours, theirs) < 1e-4


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_a_bound_subject_acts_as_in_training(loaded, trained, folder, cfg) -> None:
    encoder = _offer_encoder(folder)
    subject = pack.run(
        "EncodeSubject", encoder=encoder, image=_photograph(), clip_vision=loaded.vision
    )
    binding = pack.run("BindSubject", subject=subject, token="<anna>", noun="person")
    model, clip = pack.run(
        "Apply", model=loaded.model, clip=loaded.clip, bindings={"binding_0": binding}
    )
    theirs = _sample(model, clip, TEXT.format(subject="<anna>"), steps=4, cfg=cfg)

    caption = Caption(TEXT, "person")
    ours = _euler(trained, caption, _subjects(trained, folder, caption), steps=4, cfg=cfg)
    without = _euler(trained, caption, None, steps=4, cfg=cfg)
    assert scenes.relative_difference(ours, theirs) < 1e-4
    assert scenes.relative_difference(without, theirs) > 1e-3


def _offer_encoder(folder: Path):
    target = Path(folder_paths.get_folder_paths("nested_attention")[0])
    target.mkdir(parents=True, exist_ok=True)
    (target / ENCODER_NAME).write_bytes((folder / models.ENCODER_FILE).read_bytes())
    return pack.run("LoadEncoder", encoder_name=ENCODER_NAME)


def _subjects(trained: host.TinyWorldHost, folder: Path, caption: Caption) -> NestedSubjects:
    encoder = load_encoder(folder / models.ENCODER_FILE)
    pixels = clip_pixels(_photograph(), world.SIZE).expand(2, -1, -1, -1)
    features = trained.patch_features(pixels, encoder.config.image_encoder.hidden_state)
    keys_values = KeyValueEncoder(encoder)(features, torch.zeros(2, dtype=torch.bool))
    positions = trained.encode_captions([caption] * 2, []).positions
    return NestedSubjects(keys_values, positions, encoder.config.value_norm)


@pytest.mark.parametrize(
    "name, node",
    [(models.BASE_FILE, "LoadCheckpoint"), (models.VISION_FILE, "LoadClipVision")],
)
def test_missing_weights_are_named_with_the_remedy(loaded, folder, tmp_path, name, node) -> None:
    (folder / name).rename(tmp_path / name)
    try:
        with pytest.raises(FileNotFoundError) as caught:
            _run(node)
    finally:
        (tmp_path / name).rename(folder / name)
    text = str(caught.value)
    assert text.startswith(f"{folder / name}: there is no such file. Expected base.safetensors")
    assert "train.py" in text
    assert "TINY_WORLD_WEIGHTS" in text


def test_the_pack_hides_no_module(loaded) -> None:
    assert str(NODES) not in sys.path
    assert str(NODES.parents[1] / "tiny_world") not in sys.path
    assert sys.modules["nodes"] is host_nodes
