"""Runs of a few steps on tiny models: what learns, what stays, what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from nested_core.checkpoint import load_encoder, save_encoder
from nested_core.encoder import Encoder
from nested_core.resampler import ResamplerExtras
from nested_core.training.__main__ import main
from nested_core.training.base_model import BaseModel
from nested_core.training.config import TrainingConfig
from nested_core.training.data import open_data
from nested_core.training.data.batches import Data, Stripe
from nested_core.training.diffusers_model import load_base_model
from nested_core.training.errors import TrainingError
from nested_core.training.trainer import Trainer


def make_trainer(config: TrainingConfig) -> Trainer:
    base_model = load_base_model(config.base, config.image_encoder)
    data = open_data(config, base_model.image_encoder.image_size)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=config.accumulation)
    trainer = Trainer(config, base_model, data, accelerator)
    trainer.begin(resume=False)
    return trainer


def frozen_weights(base_model: BaseModel) -> list[torch.Tensor]:
    return [each.clone() for m in base_model.frozen_modules() for each in m.state_dict().values()]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_only_the_encoder_changes(family, make_config) -> None:
    trainer = make_trainer(make_config(family, steps=2, weight_decay=0.0))
    assert isinstance(trainer.base_model, BaseModel)
    assert isinstance(trainer.data, Data)
    frozen = frozen_weights(trainer.base_model)
    before = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    assert trainer.run() == 0
    after = frozen_weights(trainer.base_model)
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    left = [name for name, each in trainer.model.state_dict().items() if each.equal(before[name])]
    assert left == []
    encoder = load_encoder(Path(trainer.config.output, "encoder.safetensors"))
    assert encoder.site_dims == trainer.site_dims
    assert encoder.config == trainer.encoder_config
    assert encoder.config.base == family


def test_one_batch_can_be_learned(make_config) -> None:
    """A base model that never heard of this noise: the encoder alone makes the loss fall."""
    trainer = make_trainer(
        make_config(
            learning_rate=0.05, value_norm="none", drop_image=0.0, drop_text=0.0, drop_both=0.0
        )
    )
    batch = next(trainer.data.batches(None, Stripe()))
    losses = []
    for _ in range(40):
        loss = trainer.objective.loss(trainer.base_model, trainer.model, batch)
        trainer.accelerator.backward(loss)
        trainer.optimiser.step()
        trainer.optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def objective_loss(make_config):
    """The loss of the tiny run's one-sample batch, with entries of objective and batch replaced."""
    trainer = make_trainer(make_config(batch_size=1))

    def loss(objective: dict | None = None, **batch_changes) -> float:
        batch = next(trainer.data.batches(None, Stripe()))
        batch_changes = {"image_dropped": torch.tensor([False]), **batch_changes}
        batch = dataclasses.replace(batch, **batch_changes)
        changed = dataclasses.replace(trainer.objective, **(objective or {}))
        with torch.no_grad():
            return float(changed.loss(trainer.base_model, trainer.model, batch))

    loss.schedule = trainer.base_model.schedule
    return loss


def test_min_snr_scales_a_samples_loss(objective_loss) -> None:
    times = objective_loss.schedule.times(_first_draw(seed=7))
    weight = float(objective_loss.schedule.min_snr_weights(times, 0.01))
    assert weight < 0.9
    plain, weighted = objective_loss(seeds=[7]), objective_loss({"min_snr_gamma": 0.01}, seeds=[7])
    assert weighted == pytest.approx(plain * weight, rel=1e-5)


def _first_draw(seed: int) -> torch.Tensor:
    """The uniform number behind the VAE's noise, as the objective draws it."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn((4, 8, 8), generator=generator)
    return torch.rand((1,), generator=generator)


def test_a_mask_weighs_where_it_is(objective_loss) -> None:
    regional = {"region_weight": 5.0}
    everywhere, half = torch.ones(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    half[..., :32] = 0
    assert objective_loss(regional, masks=everywhere) == pytest.approx(objective_loss(), rel=1e-6)
    left, right = objective_loss(regional, masks=1 - half), objective_loss(regional, masks=half)
    # Weights 5/3 and 1/3 by halves: both ways together count everything alike.
    assert (left + right) / 2 == pytest.approx(objective_loss(), rel=1e-5)
    assert left != pytest.approx(right, rel=1e-3)


def test_a_dropped_image_is_not_seen(objective_loss) -> None:
    shown, other = torch.zeros(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    dropped = torch.tensor([True])
    assert objective_loss(reference_pixels=shown) != objective_loss(reference_pixels=other)
    assert objective_loss(reference_pixels=shown, image_dropped=dropped) == objective_loss(
        reference_pixels=other, image_dropped=dropped
    )


def test_noise_offset_changes_the_noise(objective_loss) -> None:
    assert objective_loss({"noise_offset": 0.1}) != objective_loss()
    assert objective_loss() == objective_loss()


def test_it_starts_as_words_that_nobody_wrote(make_config) -> None:
    trainer = make_trainer(make_config())
    encoder = trainer.model.encoder
    for site in encoder.site_dims:
        own = encoder.projections(site)
        to_k, to_v = trainer.base_model.projection_weights(site)
        assert torch.equal(own.to_k.weight, to_k)
        assert torch.equal(own.to_v.weight, to_v)
    captions = trainer.data.some_captions(6)
    sizes = next(trainer.data.batches(None, Stripe())).sizes[:1] * 6
    text = trainer.base_model.encode_captions(captions, sizes)
    words = torch.cat([row[1 : p + 1] for row, p in zip(text.context, text.positions, strict=True)])
    features = torch.randn(4, 17, 24, generator=torch.Generator().manual_seed(0))
    tokens = encoder.encode(features).detach().flatten(0, 1)
    assert torch.allclose(encoder.resampler.norm_out.bias, words.mean(0), atol=1e-5)
    assert float((tokens.std() / words.std()).log().abs()) < 0.7


def test_gradient_checkpointing_changes_nothing(make_config) -> None:
    gradients = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            make_config(
                output=f"{make_config().output}{checkpointing}",
                gradient_checkpointing=checkpointing,
            )
        )
        batch = next(trainer.data.batches(None, Stripe()))
        trainer.objective.loss(trainer.base_model, trainer.model, batch).backward()
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters()})
    assert all(torch.equal(each, gradients[1][name]) for name, each in gradients[0].items())


@pytest.mark.parametrize(
    "options",
    [
        {"min_snr_gamma": 5.0, "noise_offset": 0.1, "region_weight": 4.0},
        {"reference_crop": "subject", "schedule": "cosine", "warmup_steps": 2},
        {"ema_decay": 0.0, "optimiser": "Adafactor"},
        {"hidden_state": "last", "value_norm": "none", "mixed_precision": "bf16"},
    ],
)
def test_options_train_too(settings, options) -> None:
    changed = settings(steps=2, **options)
    file = Path(changed["output"] + ".json")
    file.write_text(json.dumps(changed))
    try:
        assert main(["--config", str(file)]) == 0
    finally:
        Accelerator(cpu=True).free_memory()
        _forget_precision()


def _forget_precision() -> None:
    """accelerate keeps the first precision of a process; tests are several runs in one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_average_is_what_is_shipped(make_config) -> None:
    trainer = make_trainer(make_config(steps=3, ema_decay=0.5))
    trainer.run()
    shipped = load_encoder(Path(trainer.config.output, "encoder.safetensors")).state_dict()
    live = trainer.model.encoder.state_dict()
    averages = dict(zip(live, trainer.average.averages, strict=True))
    for name, tensor in shipped.items():
        assert torch.equal(tensor, averages[name])
        assert not torch.equal(tensor, live[name])


def test_samples_and_tensorboard(settings, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    changed = settings(
        "sdxl",
        steps=2,
        sample_every=2,
        sample_steps=2,
        tensorboard=True,
        sample_prompts=["a drawing of {subject}"],
    )
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(changed))
    assert main(["--config", str(file)]) == 0
    run = Path(changed["output"])
    with Image.open(run / "samples" / "step-00000002.png") as grid:
        assert grid.size == (3 * 64, 2 * 64)
    assert list(run.rglob("events.out.tfevents.*"))
    figures = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in figures] == [1, 2]
    assert set(figures[0]) == {"step", "loss", "learning_rate", "samples_per_second", "skipped"}


def test_unreadable_files_are_counted_and_named_at_the_end(settings, data_folder, caplog) -> None:
    (data_folder / "2.png").write_text("no picture")
    changed = settings(steps=3)
    file = Path(changed["output"] + ".json")
    file.write_text(json.dumps(changed))
    assert main(["--config", str(file)]) == 0
    assert "1 unreadable files were skipped: 2.png" in caplog.text
    last = Path(changed["output"], "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["skipped"] == 1


def test_a_finished_encoder_can_be_trained_on(make_config) -> None:
    first = make_trainer(make_config(steps=1))
    first.run()
    file = f"{first.config.output}/encoder.safetensors"
    second = make_trainer(make_config(output=f"{first.config.output}-2", initial_encoder=file))
    for name, tensor in load_encoder(file).state_dict().items():
        assert torch.equal(second.model.encoder.state_dict()[name], tensor)
    with pytest.raises(TrainingError, match="this run trains ResamplerConfig"):
        make_trainer(make_config(output="x", initial_encoder=file, num_queries=5))


def test_optional_parts_of_an_earlier_resampler_are_trained_on(make_config, tmp_path) -> None:
    plain = make_trainer(make_config()).model.encoder
    extras = ResamplerExtras(max_patches=300, num_pooled_queries=1)
    earlier = Encoder(plain.config, plain.site_dims, extras=extras)
    save_encoder(earlier, tmp_path / "earlier.safetensors")
    config = make_config(steps=1, initial_encoder=str(tmp_path / "earlier.safetensors"))
    make_trainer(config).run()
    trained = load_encoder(Path(config.output, "encoder.safetensors"))
    assert trained.resampler.extras == extras
    assert not torch.equal(trained.resampler.pos_emb.weight, earlier.resampler.pos_emb.weight)


def test_a_base_model_that_is_not_there_is_named(tmp_path, settings, caplog) -> None:
    assert main(["--config", str(_file(tmp_path, settings(base=str(tmp_path / "none"))))]) == 2
    assert "none' or the image encoder" in caplog.text


def _file(tmp_path: Path, values: dict) -> Path:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    return file
