"""The tiny world's transformers draw in ComfyUI, told of subjects in any way, what training says."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pack
import pytest
import scenes
import torch

sys.path += [str(pack.ROOT), str(pack.ROOT / "demo")]
from tiny_world import models
from tiny_world.files import FILES, WEIGHTS
from tiny_world_weights import random_weights

from lab.ablations import training, ways
from lab.ablations.encoders import ABLATIONS, Ablation, ablations_of
from lab.drawing import methods
from lab.drawing.catalogue import catalogue
from lab.drawing.methods import SHIPPED, Nested, OtherWay
from lab.drawing.studio import Sampling, Studio
from lab.measures.scores import difference, measure
from lab.subjects.held_out import held_out_subject
from nested_core.attention import ValueNorm
from nested_core.families.block_sites import BlockSite
from nested_core.families.transformers import FLUX
from nested_core.training.base_model import SUBJECT, Caption
from nested_core.training.nested_attention import NestedSubjects

STEPS = 2
SITE = BlockSite(FLUX.kinds.kinds[0], 0)
NUM_TEXT, HEADS, WIDTH = 7, 4, 8
SAID = held_out_subject(5, 0)


@pytest.fixture(scope="module", params=["joint", "cross"])
def world(request, tmp_path_factory) -> SimpleNamespace:
    """Random weights of one of the transformers, in ComfyUI and as the trainer has them."""
    name = request.param
    folder = random_weights(tmp_path_factory.mktemp(name), name)
    with torch.inference_mode():
        studio = Studio(folder, Sampling(steps=STEPS), name)
        encoder = studio.load_encoder(folder / FILES[name].encoder)
        tokens = studio.encode_subject(encoder, SAID.photograph).tokens
    return SimpleNamespace(
        name=name, folder=folder, studio=studio, encoder=encoder, tokens=tokens.clone()[None]
    )


@torch.no_grad()
def _by_hand(world: SimpleNamespace, ablation: Ablation | None) -> np.ndarray:
    """Euler's method with what training predicts: dx/dt = v(x, t), from t = 1 to 0."""
    prompt, kind = SAID.prompts[0], SAID.identity.kind
    host = training.AblationHost(world.folder, ablation or Ablation(), world.name)
    words = host.encode_captions([Caption(prompt.caption([SUBJECT]), kind)], [])
    subjects = None
    if ablation is not None:
        sites = world.encoder.site_dims
        keys_values = {site.path: world.encoder.project(site, world.tokens) for site in sites}
        norm = ValueNorm(**asdict(world.encoder.config.value_norm))
        subjects = NestedSubjects(keys_values, words.positions, norm)
    latents = torch.from_numpy(prompt.noise(1, models.LATENT_CHANNELS, 8, 8))
    for time, following in itertools.pairwise(_times(host)):
        told = host.schedule.timesteps(time.expand(1))
        latents = latents + (following - time) * host.predict(latents, told, words, subjects)
    return host.decode_latents(latents)[0].permute(1, 2, 0).numpy() / 2.0 + 0.5


def _times(host: training.AblationHost) -> Iterator[torch.Tensor]:
    yield from host.schedule.times(1.0 - torch.arange(STEPS + 1) / STEPS)


def _drawn(world: SimpleNamespace, method: methods.Method) -> np.ndarray:
    return methods.draw(world.studio, method, world.encoder, SAID.prompts[:1])[0]


def _methods(name: str) -> dict[str, tuple[methods.Method, Ablation]]:
    """What is told of a subject in a way of its own, with the encoder of this test."""
    known, told = catalogue(name).methods, {}
    for called, ablation in ablations_of(name).items():
        told[ablation.way, ablation.sites] = (replace(known[called], encoder=SHIPPED), ablation)
    return told


def test_each_way_draws_in_comfyui_what_it_was_trained_for(world) -> None:
    plain = _by_hand(world, None)
    drawn = {}
    assert (
        scenes.relative_difference(
            torch.from_numpy(plain),
            torch.from_numpy(_drawn(world, catalogue(world.name).methods["none"])),
        )
        < 1e-4
    )
    for way, (method, ablation) in _methods(world.name).items():
        drawn[way] = _drawn(world, method)
        assert np.abs(drawn[way] - _by_hand(world, ablation)).max() < 1e-4, way
        assert np.abs(drawn[way] - plain).max() > 1e-2, way
    for one, other in itertools.combinations(drawn, 2):
        assert np.abs(drawn[one] - drawn[other]).max() > 1e-3, (one, other)


@pytest.mark.parametrize(
    "method, difference",
    [
        (Nested("nested", SHIPPED, strength=0.0), 0.0),
        # Another kernel than ComfyUI's computes the attention of these.
        (OtherWay("decoupled", SHIPPED, "decoupled", strength=0.0), 2e-5),
        (OtherWay("joined", SHIPPED, "joined", strength=0.0), 2e-5),
    ],
    ids=["nested", "decoupled", "joined"],
)
def test_at_strength_zero_nothing_is_told(world, method, difference) -> None:
    plain = _drawn(world, catalogue(world.name).methods["none"])
    assert np.abs(_drawn(world, method) - plain).max() <= difference


def _layer() -> SimpleNamespace:
    """Queries, keys and values of a layer of joint attention, and a subject's for two rows."""
    draws = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, HEADS, NUM_TEXT + 6, WIDTH, generator=draws) for _ in range(3))
    kn, vn = (torch.randn(2, 5, HEADS * WIDTH, generator=draws) for _ in range(2))
    subjects = NestedSubjects({SITE.path: (kn, vn)}, torch.tensor([2, 4]), ValueNorm("none"))
    return SimpleNamespace(q=q, k=k, v=v, kn=kn, vn=vn, subjects=subjects)


def _naive(way: str, scale: float, layer: SimpleNamespace, row: int, head: int) -> torch.Tensor:
    """The formulas of `ways.py`, with tables."""
    part = slice(head * WIDTH, (head + 1) * WIDTH)
    q, k, v = (each[row, head].double() for each in (layer.q, layer.k, layer.v))
    kn, vn = layer.kn[row, :, part].double(), layer.vn[row, :, part].double()
    s = int(layer.subjects.positions[row])

    def table(keys):
        return (q @ keys.T / WIDTH**0.5).softmax(-1)

    def nested(keys, kn, vn):
        weights = table(keys)
        return weights @ v + weights[:, s, None] * (table(kn) @ vn - v[s])

    if way == "decoupled":
        told = table(k) @ v + scale * table(kn) @ vn
    elif way == "joined":
        weights = (q @ torch.cat([k, kn]).T / WIDTH**0.5).exp()
        weights[:, len(k) :] *= scale
        told = weights / weights.sum(-1, keepdim=True) @ torch.cat([v, vn])
    elif way in ("learned_key", "moved_key"):
        moved = k.clone()
        moved[s] = kn[0] + (k[s] if way == "moved_key" else 0.0)
        told = nested(moved, kn[1:], vn[1:])
    else:
        told = nested(k, kn, vn)
    first = 0 if way == "text_too" else NUM_TEXT
    return torch.cat([(table(k) @ v)[:first], told[first:]])


@pytest.mark.parametrize("way", ways.WAYS)
def test_each_way_is_its_formula(way) -> None:
    layer = _layer()
    for scale in (1.0, 0.6) if way in ("decoupled", "joined") else (1.0,):
        told = ways.WAYS[way](layer.subjects, scale)
        out = told.attend(SITE, layer.q, layer.k, layer.v, NUM_TEXT, NUM_TEXT)
        for row, head in itertools.product(range(2), range(HEADS)):
            expected = _naive(way, scale, layer, row, head)
            assert scenes.relative_difference(out[row, head], expected) < 1e-5
    elsewhere = ways.WAYS[way](layer.subjects, sites="s")
    out = elsewhere.attend(SITE, layer.q, layer.k, layer.v, NUM_TEXT, NUM_TEXT)
    assert torch.equal(
        out, torch.nn.functional.scaled_dot_product_attention(layer.q, layer.k, layer.v)
    )


@pytest.mark.parametrize("name", FILES)
def test_every_method_has_an_encoder_that_can_be_had(name) -> None:
    known = catalogue(name)
    assert {method.encoder for method in known.methods.values()} == {
        None,
        SHIPPED,
        *ablations_of(name),
    }
    assert {method.encoder for method in known.several} <= {None, SHIPPED, *ablations_of(name)}
    assert ablations_of("unet") is ABLATIONS


def test_the_shipped_joint_model_keeps_unseen_subjects(tmp_path) -> None:
    """Asked for: 6 dB on the subject at no more than 0.5 dB off it. docs/ has it of many more."""
    subjects = [held_out_subject(0, number) for number in range(2)]
    prompts = [prompt for subject in subjects for prompt in subject.prompts]
    with torch.inference_mode():
        studio = Studio(WEIGHTS, Sampling(steps=8), "joint")
        # Loading names the file's folder to ComfyUI, and other tests write into the folders it knows.
        encoder = studio.load_encoder(Path(shutil.copy(WEIGHTS / FILES["joint"].encoder, tmp_path)))
    scores = [
        measure(subjects, methods.draw(studio, method, encoder, prompts).reshape(2, 4, 32, 32, 3))
        for method in (catalogue("joint").methods["none"], Nested("nested", SHIPPED))
    ]
    without, told = scores
    assert difference(told, without, "subject_psnr").mean > 6.0
    assert difference(told, without, "background_psnr").mean > -0.5
