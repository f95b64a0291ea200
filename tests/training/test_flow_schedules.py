"""The times that each family is trained at, against the schedulers that diffusers gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from tiny_flow_models import tiny_flow_pipeline
from tiny_models import tiny_image_encoder
from torch import Tensor

from nested_core.training.base_model import Caption, PictureSize
from nested_core.training.flow_models.cosmos_predict2 import CosmosPredict2
from nested_core.training.flow_models.model import TransformerModel
from nested_core.training.noise_schedule import NoiseSchedule, read_schedule

# As the models' own configurations say them.
FLUX = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
QWEN_IMAGE = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192}
FIXED = {"schnell": 1.0, "sd3.5": 3.0, "z-image turbo": 3.0, "z-image": 6.0}
UNIFORM = torch.linspace(1.0, 1 / 1000, 5)


def assert_same_times(schedule: NoiseSchedule, sigmas: Tensor) -> None:
    torch.testing.assert_close(schedule.times(UNIFORM), sigmas, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [FLUX, QWEN_IMAGE, {**FLUX, "time_shift_type": "linear"}])
@pytest.mark.parametrize("size", [(32, 32), (128, 96), (176, 176)])
def test_a_shift_that_grows_with_the_picture(settings, size) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    config = scheduler.config
    height, width = size
    mu = calculate_shift(
        height * width // 4,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
    scheduler.set_timesteps(sigmas=UNIFORM.tolist(), mu=mu)
    assert_same_times(read_schedule(scheduler).of_size(height, width), scheduler.sigmas[:-1])


@pytest.mark.parametrize("model", FIXED)
def test_a_shift_of_one_size(model) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=FIXED[model])
    scheduler.set_timesteps(sigmas=UNIFORM.tolist())
    assert_same_times(read_schedule(scheduler).of_size(128, 128), scheduler.sigmas[:-1])


@pytest.mark.parametrize("shift", [3.0, 5.0])
def test_wans_scheduler_has_its_shift_under_another_name(shift) -> None:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(sigmas=UNIFORM.numpy())
    assert_same_times(read_schedule(scheduler), scheduler.sigmas[:-1])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_cosmos_velocity_is_of_the_picture_that_its_pipeline_sees() -> None:
    """The pipeline's numbers: sigma up to 80, and what the model answers as a part of the picture."""
    pipeline = tiny_flow_pipeline("cosmos_predict2")
    schedule = read_schedule(pipeline.scheduler)
    assert (schedule.prediction, schedule.shift) == ("flow", 1.0)
    model = TransformerModel(CosmosPredict2(), pipeline, tiny_image_encoder(), schedule)
    text = model.encode_captions([Caption("a {subject}", "cat")], [PictureSize(1, 1, 0, 0, 1, 1)])
    own = tiny_flow_pipeline("cosmos_predict2").transformer  # whose layers are diffusers'
    latents, noise = random(1, 16, 8, 8, seed=1), random(1, 16, 8, 8, seed=2)
    for sigma in (0.1, 1.0, 30.0):
        time = torch.tensor([sigma / (sigma + 1)])
        seen = latents + sigma * noise
        scaled = seen * (1 - time)
        torch.testing.assert_close(schedule.mix(latents, noise, time), scaled)
        velocity = model.predict(scaled, schedule.timesteps(time), text, None)
        asked: dict[str, Any] = {
            "hidden_states": scaled[:, :, None],
            "timestep": time,
            "padding_mask": torch.zeros(1, 1, 64, 64),
            "encoder_hidden_states": text.context,
        }
        with torch.no_grad():
            denoised = (1 - time) * seen - time * own(**asked).sample[:, :, 0]
        ours, _ = schedule.parts(scaled, velocity, time)
        torch.testing.assert_close(ours, denoised, rtol=1e-4, atol=1e-4)
