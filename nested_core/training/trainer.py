"""The training loop. Everything about devices, processes and precisions is accelerate's."""

# accelerate is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import save_encoder
from .base_model import BaseModel
from .checkpoints import load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .data.batches import Batch, Data, Stripe, close_batches
from .encoders import KeyValueEncoder, initial_encoder, trained_encoder
from .errors import DivergedError
from .files import writing
from .loss import Objective
from .optimiser import MovingAverage, learning_rate_factor, make_optimiser, set_learning_rate
from .processes import (
    StopRequest,
    prepare_deepspeed,
    run_on_all_processes,
    run_on_main_process,
    shard_base,
)
from .run_folder import RunFolder
from .samples import NUM_SAMPLES, sample_batch, sample_grid, sample_prompts, save_grid
from .training_state import TrainingState

FROZEN_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FILE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

log = logging.getLogger(__name__)


class Trainer:
    """One run: an encoder for `base_model`, from `data`, into the folder `config.output`."""

    def __init__(
        self, config: TrainingConfig, base_model: BaseModel, data: Data, accelerator: Accelerator
    ) -> None:
        self.config, self.base_model, self.data = config, base_model, data
        self.accelerator, self.folder = accelerator, RunFolder(Path(config.output))
        self.stripe = Stripe(accelerator.process_index, accelerator.num_processes)
        self.step, self.skipped = 0, cast("dict[str, str]", {})
        self.resume: Any = None
        # The same for two runs with the same settings, another for each process.
        set_seed((config.seed + self.stripe.process) % 2**32)
        if config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        # The text tokens that the encoder starts from are measured in full precision.
        captions = data.some_captions(config.text_statistics)
        encoder = initial_encoder(config, base_model, captions)
        self.encoder_config, self.site_dims = encoder.config, encoder.site_dims
        self.extras = encoder.resampler.extras
        self.objective = Objective(
            encoder.config, config.min_snr_gamma, config.noise_offset, config.region_weight
        )
        for module in base_model.frozen_modules():
            module.requires_grad_(False).eval()
        if config.shard_base and self.stripe.num_processes > 1:
            shard_base(base_model)
        base_model.place(accelerator.device, FROZEN_DTYPES[accelerator.mixed_precision])
        if config.gradient_checkpointing:
            base_model.save_memory()
        self._prepare(KeyValueEncoder(encoder).train())

    def _prepare(self, model: KeyValueEncoder) -> None:
        options = {**self.config.optimiser_options}
        if self.config.weight_decay:
            options.setdefault("weight_decay", self.config.weight_decay)
        self.has_checkpoints = not prepare_deepspeed(self.accelerator, self.config)
        make = partial(
            make_optimiser,
            self.config.optimiser,
            learning_rate=self.config.learning_rate,
            options=options,
        )
        prepared: Any = self.accelerator.prepare(model, make(model.parameters()))
        self.model, self.optimiser = cast("tuple[KeyValueEncoder, Any]", prepared)
        self.average = MovingAverage(list(self.model.parameters()), self.config.ema_decay)
        self.state = TrainingState(self.accelerator, self.model, self.optimiser, self.average, make)

    def begin(self, resume: bool) -> None:
        """Goes on from the last checkpoint, if asked to and there is one.

        Raises:
            TrainingError: the folder holds another run, or one that was not asked to go on.
        """
        checkpoint = self.folder.checkpoint_to_resume(self.config, resume)
        if checkpoint is not None:
            self.step, self.resume, self.skipped = load_checkpoint(self.state, checkpoint)
            log.info("going on behind %s", checkpoint.name)
            if self.resume is None:
                log.warning("%s holds no place in the data, which begins anew", checkpoint.name)
        run_on_main_process(self.accelerator, self._open_folder)
        with writing(self.folder.tensorboard):
            self.accelerator.init_trackers("tensorboard")

    def _open_folder(self) -> None:
        self._log = self.folder.open(self.config, self.step)

    def run(self) -> int:
        """Trains to the last step, or until asked to stop: 0, or 128 + the signal's number.

        Raises:
            TrainingError: the training has diverged, or data or disk have failed.
        """
        batches = self.data.batches(self.resume, self.stripe)
        try:
            status = self._train(batches)
            close_batches(batches)
            self.accelerator.wait_for_everyone()
            self._end()
        except BaseException:
            # What fails while things are taken apart must not hide why they are.
            with suppress(Exception):
                close_batches(batches)
            with suppress(Exception):
                self._end()
            raise
        return status

    def _train(self, batches: Iterator[Batch]) -> int:
        losses: list[Tensor] = []
        started, saved = time.monotonic(), self.step
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with StopRequest() as stop, bar:
            while self.step < self.config.steps:
                losses.append(self._train_step(batches))
                bar.update()
                if self.step % self.config.log_every == 0:
                    seconds, started = time.monotonic() - started, time.monotonic()
                    self._write_figures(torch.stack(losses).mean(), seconds / len(losses), bar)
                    losses.clear()
                if self.config.sample_every and self.step % self.config.sample_every == 0:
                    self._write_samples()
                if stop.signal:
                    self.accelerator.set_trigger()
                must_stop = self.accelerator.check_trigger()
                if must_stop or self.step % self.config.save_every == 0:
                    self.save()
                    saved = self.step
                if must_stop:
                    log.warning("stopped at step %d; --resume goes on from there", self.step)
                    return 128 + stop.signal
        if saved != self.step:
            self.save()
        self._report_skipped()
        return 0

    def _end(self) -> None:
        """Takes the processes apart, in an order that lets each of them end."""
        # The distributed wrapper goes first. Were it the last owner of a gloo group, it would wait
        # for the group's threads with Python's lock in hand, and they for the lock.
        self.model = self.accelerator.unwrap_model(self.model)
        del self.state
        self.accelerator.free_memory()
        gc.collect()
        with writing(self.folder.tensorboard):
            self.accelerator.end_training()

    def _train_step(self, batches: Iterator[Batch]) -> Tensor:
        """One optimiser step; the loss of its micro-steps."""
        factor = learning_rate_factor(
            self.config.schedule, self.step, self.config.warmup_steps, self.config.steps
        )
        set_learning_rate(self.optimiser, self.config.learning_rate * factor)
        total = torch.zeros((), device=self.accelerator.device)
        for _ in range(self.config.accumulation):
            batch = next(batches)
            self._note_skipped(batch)
            self.resume = batch.resume
            with self.accelerator.accumulate(self.model):
                loss = self.objective.loss(self.base_model, self.model, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.config.max_grad_norm:
                    self.accelerator.clip_grad_norm_(
                        self.model.parameters(), self.config.max_grad_norm
                    )
                self.optimiser.step()
                self.optimiser.zero_grad()
            total += loss.detach() / self.config.accumulation
        self.step += 1
        self.average.update(self.step)
        return total

    def _note_skipped(self, batch: Batch) -> None:
        for name, reason in batch.skipped.items():
            if name not in self.skipped:
                self.skipped[name] = reason
                log.warning("skipped %s: %s (%d in all)", name, reason, len(self.skipped))

    def _write_figures(self, loss: Tensor, seconds_per_step: float, bar: Any) -> None:
        """The mean loss of all processes since the last line.

        Raises:
            DivergedError: it is not finite.
        """
        mean = float(cast("Tensor", self.accelerator.reduce(loss, "mean")))
        if not math.isfinite(mean):
            raise DivergedError(self.step, f"the loss is {mean}, the training has diverged")
        samples = self.config.batch_size * self.config.accumulation * self.stripe.num_processes
        figures = {
            "loss": mean,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "samples_per_second": samples / max(seconds_per_step, 1e-9),
            "skipped": len(self.skipped),
        }
        bar.set_postfix(loss=f"{mean:.4f}")
        with writing(self.folder.tensorboard):
            self.accelerator.log(figures, step=self.step)
        if self.accelerator.is_main_process:
            self._log.write(self.step, figures)

    def _write_samples(self) -> None:
        with self.average.in_place():
            grid = sample_grid(
                self.base_model,
                self.model,
                sample_batch(self.data, NUM_SAMPLES),
                sample_prompts(self.data, self.config),
                self.encoder_config,
                self.config,
                self.accelerator.device,
            )
        if self.accelerator.is_main_process:
            save_grid(grid, self.folder.samples(self.step))
            if self.accelerator.trackers:
                tracker: Any = self.accelerator.get_tracker("tensorboard")
                images = {"samples": grid.numpy()[None]}
                with writing(self.folder.tensorboard):
                    tracker.log_images(images, self.step, dataformats="NHWC")

    def save(self) -> None:
        """A checkpoint, and the encoder file that the nodes load."""
        run_on_all_processes(self.accelerator, lambda: self.state.check_finite(self.step))
        if self.has_checkpoints:
            save_checkpoint(
                self.state,
                self.folder.checkpoints,
                self.step,
                self.resume,
                self.skipped,
                self.config.keep,
            )
        with self.average.in_place():
            # Views of the weights in place: to be written before those are exchanged again.
            weights = cast("dict[str, Tensor]", self.accelerator.get_state_dict(self.model))
            run_on_main_process(self.accelerator, lambda: self._write_encoder(weights))

    def _write_encoder(self, weights: dict[str, Tensor]) -> None:
        """In the file's precision; the average where there is one."""
        dtype = _FILE_DTYPES[self.config.save_precision]
        encoder = trained_encoder(self.encoder_config, self.site_dims, self.extras, weights, dtype)
        save_encoder(encoder, self.folder.encoder)

    def _report_skipped(self) -> None:
        everywhere: list[dict[str, str]] = gather_object([self.skipped])
        names = sorted({name for skipped in everywhere for name in skipped})
        if names:
            log.warning("%d unreadable files were skipped: %s", len(names), ", ".join(names))
