"""Of a large training state, only the header and the encoder's tensors are read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from foreign_files import processors
from safetensors.torch import save

ROOT = Path(__file__).parents[2]
GIGABYTE = 2**30
FROZEN = 10 * GIGABYTE

# Peak memory of a process is what its system says; on Linux in kilobytes.
PROGRAM = """
import resource, sys
from nested_core.checkpoint import describe, encoder_hash, load_encoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
loaded = load_encoder(sys.argv[1])
told = list(describe(sys.argv[1]))
print(encoder_hash(loaded), peak() - before)
"""


@pytest.fixture
def large_file(tmp_path: Path, encoders: Any) -> Path:
    """The encoder behind 10 GB of a frozen UNet that no disk holds: a sparse file."""
    small = save(processors(encoders["sd15"]))
    length = int.from_bytes(small[:8], "little")
    header = json.loads(small[8 : 8 + length])
    for entry in header.values():
        entry["data_offsets"] = [FROZEN + offset for offset in entry["data_offsets"]]
    shape = [FROZEN // 4 // 2**10 // 2**10, 2**10, 2**5, 2**5]
    name = "unet.down_blocks.0.resnets.0.conv1.weight"
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [0, FROZEN]}
    text = json.dumps(header).encode()
    path = tmp_path / "state.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + FROZEN)
        file.write(small[8 + length :])
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux does")
def test_a_large_state_costs_the_memory_of_its_encoder(large_file: Path, encoders: Any):
    from nested_core.checkpoint import encoder_hash

    assert large_file.stat().st_size > FROZEN
    assert large_file.stat().st_blocks * 512 < GIGABYTE // 16
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found, grown = result.stdout.split()
    assert found == encoder_hash(encoders["sd15"])
    # The encoder has well below a megabyte; modules are imported on the way.
    assert int(grown) < GIGABYTE // 16
