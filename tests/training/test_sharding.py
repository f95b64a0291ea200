"""Big transformers on several processes: frozen weights that are shared out, encoders under FSDP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_flow_models
from safetensors.torch import load_file
from test_resume import in_processes_of_their_own, in_this_process, losses
from tiny_flow_models import tiny_flow_pipeline

from nested_core.training.diffusers_model import load_base_model
from nested_core.training.errors import TrainingError
from nested_core.training.flow_models.sharding import blocks_of
from nested_core.training.processes import shard_base

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
NUM_BLOCKS = {"flux": 4, "z_image": 5}  # Z-Image: two that refine text and picture


@pytest.mark.parametrize("family", tuple(tiny_flow_models.PIPELINES))
def test_the_blocks_hold_nearly_all_weights(family) -> None:
    transformer = tiny_flow_pipeline(family).transformer
    blocks = blocks_of(transformer)
    assert len(blocks) == NUM_BLOCKS.get(family, 3)
    sites = [name for name, module in transformer.named_modules() if module in blocks]
    assert not any(one != other and other.startswith(one + ".") for one in sites for other in sites)


def test_shared_out_weights_train_as_whole_ones(run_settings, tmp_path) -> None:
    """The base model by this trainer, the encoder by accelerate."""
    steps = {"steps": 3, "gradient_checkpointing": True}
    alone = in_this_process(
        run_settings("flux", output=str(tmp_path / "one"), batch_size=4, **steps)
    )
    shared = run_settings("flux", output=str(tmp_path / "two"), shard_base=True, **steps)
    run = str(Path(__file__).with_name("sharded_run.py"))
    assert in_processes_of_their_own(shared, *TWO, command=(run,)).wait(180) == 0
    together = Path(shared["output"])
    for name, tolerance in (("base", 0.01), ("encoder", 0.1)):
        held = [json.loads((together / f"held-{n}.json").read_text())[name] for n in (0, 1)]
        (one, whole), (other, _) = held
        assert one + other == whole
        assert abs(one / whole - 0.5) < tolerance
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    one, two = (load_file(folder / "encoder.safetensors") for folder in (alone, together))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3
    (end,) = (together / "checkpoints").iterdir()
    weights = load_file(end / "model.safetensors")
    assert {tuple(each.shape) for each in weights.values()} == {
        tuple(e.shape) for e in one.values()
    }


def test_a_unet_is_not_shared_out(make_config) -> None:
    config = make_config()
    base_model = load_base_model(config.base, config.image_encoder)
    with pytest.raises(TrainingError, match="base model 'sd15' cannot be shared out"):
        shard_base(base_model)
