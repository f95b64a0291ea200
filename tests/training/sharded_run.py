"""A run under FSDP on processors, as one of several processes: `sharded_run.py --config FILE`.

accelerate wraps in FSDP on accelerators alone. Its own code for it runs on processors, too, once it is
told that this is such a run. What each process holds goes into `OUTPUT/held-RANK.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.tensor import DTensor

from nested_core.training import processes, trainer
from nested_core.training.__main__ import main


def under_fsdp(config: Any) -> Accelerator:
    """In the place of `make_accelerator`."""
    accelerator = MAKE(config)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["SiteProjections"],
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def share(module: nn.Module) -> tuple[int, int]:
    """Weights that this process holds, and all of them."""
    parameters = list(module.parameters())
    own = [each.to_local() if isinstance(each, DTensor) else each for each in parameters]
    return sum(each.numel() for each in own), sum(each.numel() for each in parameters)


class Counted(trainer.Trainer):
    """Says what each process holds when training begins."""

    def run(self) -> int:
        held = {"base": share(self.base_model.transformer), "encoder": share(self.model)}
        folder = Path(self.config.output)
        (folder / f"held-{self.stripe.process}.json").write_text(json.dumps(held))
        return super().run()


MAKE = processes.make_accelerator
if __name__ == "__main__":
    processes.make_accelerator = under_fsdp
    trainer.Trainer = Counted
    sys.exit(main())
