"""Everything of a run's data encoded before it begins, so that what encodes it can be let go."""

# accelerate is typed in part only.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .base_model import SUBJECT, Caption
from .config import TrainingConfig
from .data.batches import Data, Stripe, WholeData
from .disk_cache import key_of
from .files import replace_file
from .flow_models.cached import CachedEncoding
from .processes import run_on_all_processes, run_on_main_process
from .samples import sample_captions

log = logging.getLogger(__name__)


def fill_cache(
    encoding: CachedEncoding, data: Data, config: TrainingConfig, accelerator: Accelerator
) -> None:
    """Encodes what is missing, each process its share; then nothing that encodes is in memory.

    Where the same data has been encoded before, and no file of it has changed since, that is known
    without a look at the pictures. What is missing all the same is encoded when it is needed.

    Raises:
        TrainingError: in every process, if data or disk have failed in one.
    """
    samples = sample_captions(data, config) if config.sample_every else []
    mark = _mark(encoding, data, samples)
    if mark is not None and mark.exists():
        log.info("captions and pictures are in %s", encoding.cache.folder)
        return
    stripe = Stripe(accelerator.process_index, accelerator.num_processes)
    is_main = accelerator.is_main_process

    def fill() -> None:
        captions = set[Caption]()
        if is_main:
            captions.update(samples, data.some_captions(config.text_statistics))
        if is_main and config.sample_every:
            encoding.keep_picture(torch.zeros(3, config.resolution, config.resolution))
        num_made = 0
        for caption, pixels in tqdm(_contents(data, stripe), unit="picture", disable=not is_main):
            captions |= {caption, Caption(SUBJECT, caption.noun)}
            num_made += encoding.keep_picture(pixels)
        encoding.release()
        log.info("%d pictures were encoded; now captions, %d", num_made, len(captions))
        # In an order of their own, not the set's.
        in_order = sorted(captions, key=lambda each: (each.text, each.noun))
        for caption in tqdm(in_order, unit="caption", disable=not is_main):
            encoding.keep_text(caption)
        encoding.release()

    run_on_all_processes(accelerator, fill)
    if mark is not None:
        run_on_main_process(accelerator, lambda: replace_file(mark, b"{}\n"))


def _contents(data: Data, stripe: Stripe) -> Iterator[tuple[Caption, torch.Tensor]]:
    if not isinstance(data, WholeData):
        return
    with closing(data.contents(stripe)) as contents:
        yield from contents


def _mark(encoding: CachedEncoding, data: Data, samples: list[Caption]) -> Path | None:
    """The file whose being there says that all of it has been encoded."""
    if not isinstance(data, WholeData):
        return None
    captions = [text for each in samples for text in (each.text, each.noun)]
    key = key_of(*encoding.digests.values(), str(encoding.dtype), data.fingerprint(), *captions)
    return encoding.cache.folder / "complete" / f"{key}.json"
