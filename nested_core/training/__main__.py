"""`python -m nested_core.training --config FILE`, alone or behind `accelerate launch`."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence

from ..errors import NestedAttentionError

_FAILED = 2  # argparse's exit code for wrong arguments
_LONGEST_MESSAGE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 trained, 128 + signal when asked to stop, 2 for whatever else ended it.

    What a user, a disk or a file can cause ends with one sentence.
    """
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger(__package__).setLevel(logging.INFO)
    earlier_hook, threading.excepthook = threading.excepthook, _thread_failed
    try:
        return _train(arguments)
    except ImportError as error:
        missing = error.name or str(error)
        return _fail(
            f"{missing} is not installed. Training needs more than the nodes do: "
            "pip install accelerate diffusers transformers tensorboard webdataset"
        )
    except NestedAttentionError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            f"{where}the system refused ({error.strerror or error}). Check the disk's free space and "
            "your rights there; --resume then goes on from the last checkpoint."
        )
    except KeyboardInterrupt:
        return _fail("Stopped at once; --resume goes on from the last checkpoint.") and 130
    finally:
        threading.excepthook = earlier_hook


def _train(arguments: Sequence[str] | None) -> int:
    from .config import parse_arguments

    config, resume = parse_arguments(arguments)
    from .data import open_data
    from .diffusers_model import load_base_model
    from .fill_cache import fill_cache
    from .flow_models.cached import CachedEncoding
    from .processes import make_accelerator
    from .trainer import FROZEN_DTYPES, Trainer

    accelerator = make_accelerator(config)
    if not accelerator.is_main_process:
        logging.getLogger(__package__).setLevel(logging.WARNING)
    base_model = load_base_model(
        config.base,
        config.image_encoder,
        config.base_config,
        FROZEN_DTYPES[accelerator.mixed_precision],
        config.distilled_guidance,
        config.cache_path,
    )
    data = open_data(config, base_model.image_encoder.image_size)
    encoding = getattr(base_model, "encoding", None)
    if isinstance(encoding, CachedEncoding):
        encoding.place(accelerator.device, FROZEN_DTYPES[accelerator.mixed_precision])
        fill_cache(encoding, data, config, accelerator)
    trainer = Trainer(config, base_model, data, accelerator)
    trainer.begin(resume)
    return trainer.run()


def _fail(message: str) -> int:
    sentence = " ".join(message.split())
    if len(sentence) > _LONGEST_MESSAGE:
        sentence = f"{sentence[:_LONGEST_MESSAGE]}..."
    logging.getLogger(__package__).error(sentence)
    return _FAILED


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """tensorboard writes in a thread of its own, and tells the main one what the disk refused."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


if __name__ == "__main__":
    sys.exit(main())
