"""Reading a stranger's file costs at most what the file is worth: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_RANDOM = 150
MAX_SECONDS = 5.0  # of processor time for one file in all four readers; a good one takes 0.02


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_hostile_files_are_read_or_refused_within_time_and_memory(tmp_path: Path):
    script = Path(__file__).with_name("read_under_limits.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(NUM_RANDOM)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    last = lines[-1]["name"] if lines else "nothing"
    assert done.returncode == 0, f"ended behind {last}: {done.stderr[-3000:]}"
    assert len(lines) > NUM_RANDOM + 200

    good = {line["name"]: line["outcomes"] for line in lines[:3]}
    assert [word.split(":")[0] for word in good["a good encoder"]] == [
        "read",
        "read",
        "refused",
        "read",
    ]
    for line in lines:
        for outcome in line["outcomes"]:
            assert not outcome.startswith("broken"), line
            assert len(outcome.encode()) < 2500, line
        assert line["seconds"] < MAX_SECONDS, line
    kept = {line["name"] for line in lines if line["outcomes"][1] == "read"}
    assert {name for name in kept if not name.startswith("random")} == {
        "a good encoder",
        "a good encoder of another make",
        "value_norm.scale = 1.5",
    }
