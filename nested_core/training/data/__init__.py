"""Training data: a folder of pictures, or webdataset shards.

`examples.py` makes one sample of the files that its metadata names, `folder.py` and `shards.py` are
streams of them, and `batches.py` is what such a stream consists of.
"""

from __future__ import annotations

from pathlib import Path

from ..config import TrainingConfig
from .batches import Data
from .examples import Preparation
from .folder import FolderData, read_metadata


def open_data(config: TrainingConfig, reference_size: int) -> Data:
    """The folder with `metadata.jsonl`, or where `data` is no folder, the shards that it lists.

    Raises:
        TrainingError: there is nothing of the kind.
    """
    preparation = Preparation(
        resolution=config.resolution,
        reference_size=reference_size,
        noun=config.noun,
        reference_crop=config.reference_crop,
        drop_image=config.drop_image,
        drop_text=config.drop_text,
        drop_both=config.drop_both,
    )
    stream = (preparation, config.batch_size, config.seed, config.workers)
    folder = Path(config.data)
    if folder.is_dir():
        return FolderData(folder, read_metadata(folder), *stream)
    from .shards import ShardData, expand_shards

    return ShardData(expand_shards(config.data), *stream, config.shuffle_buffer)
