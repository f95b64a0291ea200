"""Trains a base model from scratch, on words and pictures: the UNet together with the text encoder,
the transformers with that one.

A base model must have a language for appearance before a subject can speak it: nested attention
puts values into a word's place, and values can only say what the base has learned to hear. So its
captions name a random part of every subject's colours, from none to all. Five things make it listen
within minutes: the loss weighs the subjects' pixels more, times are drawn towards noise (at less
noise the colours are seen, no words needed), parts are several cells large, the world begins small
and grows, and subjects are called by one colour (`data.py`) while the network often sees the things'
tokens alone (`things_alone` below).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_world import models
from torch import Tensor, nn
from torch.nn import functional

from nested_core.training.base_model import Caption
from nested_core.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from nested_core.training.loss import noise_prediction_loss, region_weights
from nested_core.training.optimiser import MovingAverage, learning_rate_factor, set_learning_rate
from nested_core.training.processes import StopRequest
from nested_core.training.run_folder import FigureLog
from nested_core.training.training_state import TrainingState

from .data import BaseExamples, base_examples
from .host import BaseModel, TinyWorldHost
from .text_gain import text_gain

log = logging.getLogger(__name__)
SCHEDULE = TinyWorldHost.schedule
ExamplesFunction = Callable[[int, int, int], BaseExamples]


@dataclass(frozen=True)
class BaseTraining:
    """Settings of the base model's run.

    Attributes:
        batch_size: of all processes together.
        subject_weight: of the subjects' pixels in the loss, 1: as elsewhere.
        things_alone: share of the samples in which the network sees no token but those of things. A
            colour is then to be had from the thing that follows it, the text encoder having carried
            it there, and no longer from the colour's own token or the end of the text. A value that
            takes the noun's place is heard only if pixels look there.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    subject_weight: float = 3.0
    things_alone: float = 0.75
    seed: int = 0
    save_every: int = 250
    log_every: int = 50
    text_gain_every: int = 250


def untrained_model(
    seed: int, name: str = models.UNET, text_of: Path = models.WEIGHTS
) -> BaseModel:
    """A network that has seen nothing; each of its blocks starts as the identity.

    The UNet learns to read with its text encoder; the others read with the one that it has left in
    the folder `text_of`.
    """
    torch.manual_seed(seed)
    model = BaseModel(name)
    model.network.initialise()
    if name != models.UNET:
        model.load_text(text_of / models.BASE_FILE)
        return model
    for parameter_name, parameter in model.text.named_parameters():
        if "token_embedding" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
        elif "position_embedding" in parameter_name:
            # Neighbours are alike from the start: "red hat" is about who stands beside whom.
            parameter.data.copy_(0.3 * _waves(*parameter.shape))
    return model


def _waves(count: int, width: int) -> Tensor:
    frequencies = 100.0 ** -(torch.arange(width // 2) / (width // 2))
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def base_loss(
    model: nn.Module, rows: Tensor, batch: BaseExamples, settings: BaseTraining, seed: int
) -> Tensor:
    """The loss of flow matching; everything random in it follows from the seed."""
    generator = torch.Generator().manual_seed(seed)
    device = rows.device
    latents = functional.pixel_unshuffle(batch.pixels, models.BLOCK).to(device)
    times = SCHEDULE.times(torch.rand(len(latents), generator=generator)).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    alone = (torch.rand(len(latents), generator=generator) < settings.things_alone).to(device)
    noisy = SCHEDULE.mix(latents, noise, times)
    prediction = model(noisy, SCHEDULE.timesteps(times), rows, alone)
    grid = (latents.shape[-2], latents.shape[-1])
    weights = region_weights(batch.masks.to(device), settings.subject_weight, grid)
    target = SCHEDULE.target(latents, noise, times)
    return noise_prediction_loss(prediction, target, pixel_weights=weights)


class BaseTrainer:
    """The base model's run in a folder; made anew, it goes on where an earlier one stopped.

    Args:
        model: what the run starts from; a network that has seen nothing without it.
        examples: samples of the data by seed, first number and count.
    """

    def __init__(
        self,
        settings: BaseTraining,
        folder: Path,
        accelerator: Accelerator,
        model: BaseModel | None = None,
        examples: ExamplesFunction = base_examples,
    ) -> None:
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.checkpoints, self.examples = folder / "checkpoints", examples
        self.model = model or untrained_model(settings.seed)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]
        make_optimiser = partial(
            torch.optim.AdamW, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self.net, self.optimiser = accelerator.prepare(self.model, make_optimiser(self.parameters))
        self.average = MovingAverage(self.parameters, settings.ema_decay)
        self.state = TrainingState(
            accelerator, self.net, self.optimiser, self.average, make_optimiser
        )
        self.step = 0
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None:
            self.step, _, _ = load_checkpoint(self.state, checkpoint)
            log.info("going on behind %s", checkpoint.name)
        if accelerator.is_main_process:
            self.figures = FigureLog(folder / "log.jsonl", self.step)

    def run(self) -> bool:
        """Trains to the last step; False if asked to stop, with a checkpoint written.

        At every checkpoint the average of the weights is written to the model's file.
        """
        settings, losses, started = self.settings, [], time.monotonic()
        with StopRequest() as stop:
            while self.step < settings.steps:
                losses.append(self._train_step())
                if self.step % settings.log_every == 0:
                    self._report(torch.stack(losses).mean(), time.monotonic() - started)
                    losses, started = [], time.monotonic()
                if stop.signal:
                    self.accelerator.set_trigger()
                must_stop = self.accelerator.check_trigger()
                is_last = self.step == settings.steps
                if must_stop or is_last or self.step % settings.save_every == 0:
                    self._save()
                if must_stop and not is_last:
                    return False
        return True

    def _train_step(self) -> Tensor:
        settings, accelerator = self.settings, self.accelerator
        factor = learning_rate_factor("cosine", self.step, settings.warmup_steps, settings.steps)
        set_learning_rate(self.optimiser, settings.learning_rate * factor)
        share = settings.batch_size // accelerator.num_processes
        first = self.step * settings.batch_size + accelerator.process_index * share
        batch = self.examples(settings.seed, first, share)
        rows, _ = self.model.rows([Caption(text, "") for text in batch.captions])
        loss = base_loss(self.net, rows, batch, settings, seed=first)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.average.update(self.step)
        return loss.detach()

    def _report(self, loss: Tensor, seconds: float) -> None:
        """A line of figures: of the first process's share of the batches."""
        if not self.accelerator.is_main_process:
            return
        line = {"loss": float(loss), "seconds_per_step": seconds / self.settings.log_every}
        if self.step % self.settings.text_gain_every == 0:
            with self.average.in_place():
                line |= text_gain(self.model)
        self.figures.write(self.step, line)
        log.info("step %d %s", self.step, {name: round(figure, 3) for name, figure in line.items()})

    def _save(self) -> None:
        save_checkpoint(self.state, self.checkpoints, self.step, None, {}, keep=1)
        if self.accelerator.is_main_process:
            with self.average.in_place():
                self.model.save(self.folder / self.model.base.files.base, torch.float16)
