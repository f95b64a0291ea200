"""`python -m nested_core.training --config FILE`, alone or behind `accelerate launch`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..errors import NestedAttentionError

_WRONG_SETTINGS = 2  # argparse's exit code for wrong arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 trained, 2 wrong settings or data, 128 + signal when asked to stop."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger(__package__).setLevel(logging.INFO)
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


def _train(arguments: Sequence[str] | None) -> int:
    from .config import parse_arguments

    config, resume = parse_arguments(arguments)
    from .engine import Trainer, make_accelerator
    from .host import load_host
    from .sources import open_data

    accelerator = make_accelerator(config)
    if not accelerator.is_main_process:
        logging.getLogger(__package__).setLevel(logging.WARNING)
    host = load_host(config.base, config.image_encoder, config.base_config)
    data = open_data(config, host.image_encoder.image_size)
    trainer = Trainer(config, host, data, accelerator)
    trainer.begin(resume)
    return trainer.run()


def _fail(message: str) -> int:
    logging.getLogger(__package__).error(message)
    return _WRONG_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
