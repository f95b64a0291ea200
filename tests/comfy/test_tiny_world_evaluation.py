"""The evaluation in the tiny world: what it draws is what single runs draw, and figures are right."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch

pytest.importorskip("accelerate")
from pack import ROOT

sys.path += [str(ROOT), str(ROOT / "demo")]
from tiny_world import models, world
from tiny_world_weights import random_weights

from lab import evaluate
from lab.ablations import decoupled, training
from lab.ablations.encoders import ABLATIONS
from lab.ablations.trained import TrainingNeededError
from lab.drawing import evaluation as drawn_evaluation
from lab.drawing import methods
from lab.drawing.catalogue import catalogue, identities_for
from lab.drawing.evaluation import Evaluation
from lab.drawing.methods import SHIPPED, Decoupled, Nested
from lab.drawing.picture_files import PictureFiles
from lab.drawing.studio import Sampling, Studio, run_node
from lab.measures.scores import Scores, difference, estimate, measure
from lab.report.page import BEGIN, END, conclusions_of
from lab.subjects.held_out import held_out_subject, held_out_subjects
from nested_core.attention import ValueNorm
from nested_core.training.base_model import SUBJECT, Caption
from nested_core.training.nested_attention import NestedSubjects

STEPS = 2
METHODS = catalogue().methods
NESTED, DECOUPLED = Nested("nested", SHIPPED), Decoupled("decoupled", SHIPPED, strength=0.7)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def studio(weights) -> Studio:
    with torch.inference_mode():
        return Studio(weights, Sampling(steps=STEPS))


@pytest.fixture(scope="module")
def encoder(studio, weights):
    return studio.load_encoder(weights / models.ENCODER_FILE)


@pytest.fixture
def evaluation(tmp_path, weights) -> Evaluation:
    budget = {"steps": 2, "batch_size": 2, "warmup_steps": 1}
    return Evaluation(tmp_path / "out", weights, 3, Sampling(steps=STEPS), 2, budget)


@pytest.mark.parametrize(
    "method", [METHODS["none"], METHODS["named"], NESTED, DECOUPLED], ids=lambda one: one.name
)
def test_a_batch_of_several_identities_is_that_many_single_runs(studio, encoder, method) -> None:
    prompts = [prompt for one in held_out_subjects(5, 3) for prompt in one.prompts[:2]]
    together = methods.draw(studio, method, encoder, prompts)
    assert together.shape == (6, 32, 32, 3)
    alone = [methods.draw(studio, method, encoder, [prompt])[0] for prompt in prompts]
    assert np.abs(together - np.stack(alone)).max() < 1e-4
    assert len({picture.tobytes() for picture in together}) == 6


def test_the_methods_draw_different_pictures_of_the_same_noise(studio, encoder) -> None:
    prompts = held_out_subject(5, 0).prompts[:1]
    chosen = (METHODS["none"], METHODS["named"], NESTED, DECOUPLED)
    drawn = [methods.draw(studio, method, encoder, prompts) for method in chosen]
    for index, pictures in enumerate(drawn):
        assert all(np.abs(pictures - other).mean() > 1e-4 for other in drawn[:index])
    for method in (replace(NESTED, strength=0.0), replace(DECOUPLED, strength=0.0)):
        assert np.abs(methods.draw(studio, method, encoder, prompts) - drawn[0]).max() < 1e-5


def test_a_row_is_what_the_ksampler_node_draws_of_the_same_noise(
    studio, encoder, monkeypatch
) -> None:
    import comfy.sample

    prompts = held_out_subject(5, 0).prompts
    ours = methods.draw(studio, NESTED, encoder, prompts)[0]
    noise = torch.from_numpy(prompts[0].noise(48, 8, 8))[None]
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *_: noise)
    model, clip, captions = NESTED.prepare(studio, encoder, prompts)
    latent = run_node("EmptyLatentImage", width=32, height=32, batch_size=1)[0]
    positive, negative = (
        run_node("CLIPTextEncode", clip=clip, text=t)[0] for t in (captions[0], "")
    )
    (samples,) = run_node(
        "KSampler",
        model=model,
        seed=0,
        steps=STEPS,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=1.0,
    )
    (theirs,) = run_node("VAEDecode", vae=studio.vae, samples=samples)
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("kinds", [[0], [1, 0], [0, 1]])
def test_the_decoupled_patch_is_the_formula_on_conditional_rows(kinds) -> None:
    rows, heads, width = 2, 4, 8
    draws = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(rows * len(kinds), n, 32, generator=draws) for n in (9, 7, 7))
    kn, vn = (torch.randn(rows, 5, 32, generator=draws) for _ in range(2))
    options = {"n_heads": heads, "attn_precision": None, "cond_or_uncond": kinds}
    out = decoupled.DecoupledSite(kn, vn, 0.6)(q, k, v, options)

    def attention(q, k, v):
        by_head = []
        for part in (slice(head * width, (head + 1) * width) for head in range(heads)):
            a = (q[:, part].double() @ k[:, part].double().T / math.sqrt(width)).softmax(-1)
            by_head.append(a @ v[:, part].double())
        return torch.cat(by_head, dim=1)

    for row in range(len(q)):
        expected = attention(q[row], k[row], v[row])
        if kinds[row // rows] == 0:
            expected = expected + 0.6 * attention(q[row], kn[row % rows], vn[row % rows])
        assert scenes.relative_difference(out[row], expected) < 1e-5


def test_decoupled_training_and_comfyui_predict_the_same(studio, encoder, weights) -> None:
    subject = held_out_subject(5, 0)
    (prompt, *_), kind = subject.prompts, subject.identity.kind
    host = training.AblationHost(weights, ABLATIONS["decoupled"])
    tokens = studio.encode_subject(encoder, subject.photograph).tokens
    keys_values = {site.path: encoder.project(site, tokens[None]) for site in encoder.site_dims}
    text = host.encode_captions([Caption(prompt.caption([SUBJECT]), kind)], [])
    noisy, sigma = torch.from_numpy(prompt.noise(1, 48, 8, 8)), torch.tensor([0.7])
    subjects = NestedSubjects(keys_values, text.positions, ValueNorm())
    told = host.schedule.timesteps(sigma)
    prediction = host.predict(noisy, told, text, subjects)
    ours, _ = host.schedule.parts(noisy, prediction, sigma)
    model = decoupled.with_decoupled_subjects(studio.model, encoder, tokens[None], 1.0)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [0]}
    theirs = model.model.apply_model(
        noisy, sigma, c_crossattn=text.context, transformer_options=options
    )
    assert scenes.relative_difference(ours, theirs) < 1e-4
    without, _ = host.schedule.parts(noisy, host.predict(noisy, told, text, None), sigma)
    assert scenes.relative_difference(without, theirs) > 1e-3


def test_scores_are_those_computed_by_hand() -> None:
    subject = held_out_subject(0, 0)
    masks = np.stack([prompt.mask for prompt in subject.prompts])[..., None]
    targets = np.stack([prompt.target for prompt in subject.prompts])
    inward = np.where(targets < 0.5, 1.0, -1.0)  # so that nothing leaves [0, 1]
    pictures = (targets + inward * np.where(masks, 0.1, 0.01)).astype(np.float32)
    measured = measure([subject], pictures[None])
    assert measured.subject_psnr == pytest.approx(np.full((1, 4), 20.0), abs=1e-4)
    assert measured.background_psnr == pytest.approx(np.full((1, 4), 40.0), abs=1e-3)
    share = masks.mean(axis=(1, 2, 3))
    whole = -10.0 * np.log10(share * 0.1**2 + (1.0 - share) * 0.01**2)
    assert measured.picture_psnr[0] == pytest.approx(whole, abs=1e-3)
    assert measured.style_obeyed.tolist() == [[1.0] * 4]


def test_a_subject_in_the_wrong_style_disobeys() -> None:
    subject = held_out_subject(0, 0)
    pictures = np.stack([prompt.in_style("photo").target for prompt in subject.prompts])
    obeyed = measure([subject], pictures[None]).style_obeyed[0]
    assert obeyed.tolist() == [float(style == "photo") for style in world.STYLES]


def test_intervals_are_of_means_over_identities() -> None:
    values = np.random.default_rng(4).normal(7.0, 2.0, 400)
    interval = estimate(values)
    mean, half = values.mean(), 1.96 * values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(mean)
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), abs=0.02)
    table = np.repeat(values[:, None], 4, axis=1)
    one, other = Scores(*[table + 1.0] * 4), Scores(*[table[:100]] * 4)
    gain = difference(one, other, "subject_psnr")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1.0, 1.0, 1.0))


def test_identities_are_their_own_whatever_the_number() -> None:
    first, second = held_out_subjects(0, 2)
    assert [one.identity for one in held_out_subjects(0, 5)][:2] == [
        first.identity,
        second.identity,
    ]
    of_another_seed = held_out_subject(1, 1)
    assert second.identity != of_another_seed.identity != first.identity
    subjects = (first, second, held_out_subject(1, 0))
    noises = {prompt.noise(3).tobytes() for one in subjects for prompt in one.prompts}
    assert len(noises) == 12
    for prompt, style in zip(first.prompts, world.STYLES, strict=True):
        assert prompt.scene.style == style
        assert not set(prompt.caption(["<s0>"]).split()) & set(world.PALETTE)
        assert set(prompt.full_caption().split()) & set(world.PALETTE)


def test_pictures_on_disk_are_those_drawn(tmp_path) -> None:
    files = PictureFiles(tmp_path, "method", {"seed": 1})
    pictures = np.random.default_rng(0).random((18, 4, 32, 32, 3), np.float32)
    assert files.missing(18) == [range(16), range(16, 18)]
    files.write(range(16, 18), pictures[16:])
    assert files.missing(18) == [range(16)]
    files.write(range(16), pictures[:16])
    assert np.abs(files.read(18) - pictures).max() <= 0.5 / 255 + 1e-6
    assert PictureFiles(tmp_path, "method", {"seed": 2}).missing(16) == [range(16)]


def test_what_is_there_is_neither_drawn_nor_trained_again(evaluation, monkeypatch) -> None:
    chosen = [METHODS[name] for name in ("none", SHIPPED, "decoupled")]
    with torch.inference_mode(False), torch.enable_grad():
        first = [evaluation.pictures(method, 2) for method in chosen]

    def never(*_: object) -> None:
        raise AssertionError("drawn, trained or loaded again")

    for module, name in (
        (drawn_evaluation, "draw"),
        (drawn_evaluation, "Studio"),
        (training, "train_ablation"),
    ):
        monkeypatch.setattr(module, name, never)
    again = replace(evaluation)
    assert all(np.array_equal(again.pictures(m, 2), p) for m, p in zip(chosen, first, strict=True))
    with pytest.raises(AssertionError, match="again"):
        replace(evaluation, seed=4).pictures(METHODS["none"], 2)
    with pytest.raises(AssertionError, match="again"):
        again.pictures(METHODS["none"], 3)


def test_a_stopped_evaluation_goes_on_with_the_part_it_had_begun(evaluation, monkeypatch) -> None:
    drawn: list[int] = []

    def draw(studio, method, encoder, prompts):
        if len(drawn) == 9:  # the first of the second part's two batches is done
            raise InterruptedError
        drawn.append(len(prompts))
        return np.zeros((len(prompts), 32, 32, 3), np.float32)

    monkeypatch.setattr(drawn_evaluation, "draw", draw)
    with pytest.raises(InterruptedError):
        evaluation.pictures(METHODS["none"], 20)
    drawn[:] = []
    assert evaluation.pictures(METHODS["none"], 20).shape == (20, 4, 32, 32, 3)
    assert drawn == [8, 8]


def test_a_missing_ablation_without_the_trainers_tools_is_an_error(evaluation, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingNeededError, match=r"one_token: .* exec --tools .* --methods main"):
        evaluation.pictures(METHODS["one_token"], 1)


def test_every_method_has_an_encoder_that_can_be_had() -> None:
    encoders = {method.encoder for method in METHODS.values()}
    assert encoders == {None, SHIPPED, *ABLATIONS}
    assert [one.name for one in catalogue().chosen(["shipped", "main"])] == [
        "none",
        "named",
        SHIPPED,
    ]
    counts = [identities_for(METHODS[name], 256) for name in ("named", "nested_4")]
    assert counts == [256, 64]


def test_the_command_writes_rows_and_the_report(tmp_path, weights) -> None:
    json_file, page = tmp_path / "rows.json", tmp_path / "docs" / "evaluation.md"
    page.parent.mkdir()
    page.write_text(f"OLD\n{BEGIN}\n\nIt *works*.\n{END}\nOLD", encoding="utf-8")
    options = ["--identities", "2", "--steps", "2", "--seed", "9", "--weights", str(weights)]
    options += ["--output", str(tmp_path / "out"), "--json", str(json_file), "--report", str(page)]
    assert evaluate.main(options) == 0
    rows = json.loads(json_file.read_text())
    assert [(row["method"], row["style"]) for row in rows] == [
        (method, style) for method in ("none", "named", SHIPPED) for style in (*world.STYLES, "all")
    ]
    assert [row["n"] for row in rows[:5]] == [2, 2, 2, 2, 8]
    for row in rows:
        for name in ("subject_psnr", "background_psnr"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    text = page.read_text(encoding="utf-8")
    assert conclusions_of(text) == "It *works*."
    assert "OLD" not in text
    assert f"{rows[14]['subject_psnr']:.2f} [" in text
    for figure in ("styles", "examples"):
        assert f"(evaluation-{figure}.png)" in text
        assert (page.parent / f"evaluation-{figure}.png").stat().st_size > 1000
    assert "evaluation-curve" not in text


def test_unknown_methods_are_named_with_the_known_ones(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--methods", "magic"])
    assert caught.value.code == 2
    assert "found magic; there are main, ablations, curve, all, none" in capsys.readouterr().err
