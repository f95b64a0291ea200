"""An encoder trained on the diffusers model does in ComfyUI what it did in training."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.utils
import folder_paths
import pack
import pytest
import scenes
import tiny
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
sys.path.append(str(Path(__file__).parents[1] / "training"))
import tiny_models

from nested_core.training.__main__ import main
from nested_core.training.base_model import TextConditions
from nested_core.training.nested_attention import CrossAttentionProcessor, NestedSubjects
from nested_core.training.unet_model import UNetModel

kv_cache = pack.module("nodes.bridge.model.kv_cache")
plan = pack.module("nested_core.call.plan")
site_call = pack.module("nodes.bridge.families.unet_site_call")
TOKENIZER = Path(os.environ["NESTED_ATTENTION_HOST"], "comfy", "sd1_tokenizer")


@pytest.fixture
def trained(family, tmp_path):
    """The scene with an encoder of two training steps, read from its file by the node."""
    with torch.inference_mode(False), torch.enable_grad():
        run = _train(family, tmp_path)
    folder = Path(folder_paths.get_folder_paths("nested_attention")[0])
    folder.mkdir(parents=True, exist_ok=True)
    name = f"trained-{family}.safetensors"
    (run / "encoder.safetensors").replace(folder / name)
    scene = scenes.make_scene(family)
    scene.encoder = pack.run("LoadEncoder", encoder_name=name)
    return scene


def _train(family: str, folder: Path) -> Path:
    base, vision, data = (folder / name for name in ("base", "vision", "data"))
    tiny_models.save_tiny_base(family, base, TOKENIZER)
    tiny_models.save_tiny_image_encoder(vision)
    data.mkdir()
    tiny_models.write_picture(data / "a.png", 0)
    line = {"file_name": "a.png", "text": "a photo of {subject} in a hat"}
    (data / "metadata.jsonl").write_text(json.dumps(line))
    settings = {
        "output": str(folder / "run"),
        "base": str(base),
        "image_encoder": str(vision),
        "data": str(data),
        "resolution": 64,
        "workers": 0,
        "num_queries": 6,
        "resampler_dim": 24,
        "resampler_depth": 2,
        "resampler_heads": 2,
        "resampler_dim_head": 8,
        "steps": 2,
        "batch_size": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "save_precision": "float32",
        "sample_every": 0,
        "tensorboard": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    assert main(["--config", str(folder / "settings.json")]) == 0
    return folder / "run"


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _subjects(scene, subject, rows: int, position: int) -> NestedSubjects:
    tokens = subject.tokens[None].expand(rows, -1, -1)
    keys_values = {site.path: scene.encoder.project(site, tokens) for site in scene.sites}
    norm = scene.encoder.config.value_norm
    return NestedSubjects(keys_values, torch.full((rows,), position), _plain_norm(norm))


def _plain_norm(norm):
    """The same value norm, of the class that the training code was imported with."""
    from nested_core.attention import ValueNorm

    return ValueNorm(norm.mode, norm.scale)


def test_a_site_gives_the_same_output_in_both_hosts(trained) -> None:
    words, position, grid = 7, 3, (3, 5)
    subject = trained.subject()
    binding = trained.bind(subject)
    keys_values = kv_cache.keys_and_values(
        subject, trained.sites, torch.device("cpu"), torch.float32
    ).model
    rows = slice(0, 2)
    active = plan.ActiveSubject(binding, keys_values, frozenset(trained.sites), rows)
    occurrence = plan.TokenOccurrence(active, torch.full((2,), position), rows)
    group = plan.RowGroup(rows, (0, 1), (occurrence,))
    planned = plan.CallPlan(2, words, subjects=(active,), groups=(group,))
    call = site_call.SiteCall(planned, pytest.fail)
    subjects = _subjects(trained, subject, 2, position)
    for number, site in enumerate(trained.sites):
        inner, heads = trained.encoder.site_dims[site], 4
        query = _random(2, grid[0] * grid[1], inner, seed=number)
        key, value = (_random(2, words, inner, seed=number + n) for n in (100, 200))
        options = {
            "n_heads": heads,
            "attn_precision": None,
            "activations_shape": (2, inner, *grid),
        }
        theirs = call.attend(site_call.Asked(site, query, key, value, options))
        layer = SimpleNamespace(
            heads=heads,
            to_q=lambda _, query=query: query,
            to_k=lambda _, key=key: key,
            to_v=lambda _, value=value: value,
            to_out=[lambda x: x, lambda x: x],
        )
        processor = CrossAttentionProcessor(_plain_site(site))
        ours = processor(layer, query, key, nested_subjects=subjects)
        without = processor(layer, query, key)
        assert scenes.relative_difference(ours, theirs) < 1e-5
        assert scenes.relative_difference(without, theirs) > 1e-2


def _plain_site(site):
    from nested_core.families.unet_sites import AttentionSite

    return AttentionSite(*site)


def test_the_whole_unet_predicts_the_same_in_both_hosts(trained) -> None:
    base_model = UNetModel(
        tiny_models.tiny_pipeline(trained.family, TOKENIZER), tiny_models.tiny_image_encoder()
    )
    unet = trained.model.model.diffusion_model
    names = comfy.utils.unet_to_diffusers(tiny.FAMILIES[trained.family].unet_config)
    weights = base_model.unet.state_dict()
    own = {theirs: weights[name] for name, theirs in names.items() if name in weights}
    assert set(own) == set(unet.state_dict())
    unet.load_state_dict(own)

    subject = trained.subject()
    model, clip = trained.apply(trained.bind(subject))
    calls = []
    hook = unet.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    trained.sample(model, trained.encode(clip, "a <anna>"), trained.encode(clip, ""), cfg=1.0)
    hook.remove()
    for args, kwargs, theirs in calls:
        noisy, times = args[0], args[1]
        context = kwargs["context"] if "context" in kwargs else args[2]
        extras = {}
        if trained.family == "sdxl":
            pooled = kwargs["y"][:, : tiny.CLIP_G_WIDTH]
            sizes = torch.tensor([[128.0, 96.0, 0.0, 0.0, 128.0, 96.0]])
            extras = {"text_embeds": pooled, "time_ids": sizes}
        text = TextConditions(context, torch.tensor([2]), extras)
        subjects = _subjects(trained, subject, 1, 2)
        ours = base_model.predict(noisy, times, text, subjects)
        assert scenes.relative_difference(ours, theirs) < 1e-4
        assert (
            scenes.relative_difference(base_model.predict(noisy, times, text, None), theirs) > 1e-3
        )
    assert len(calls) == trained.steps
