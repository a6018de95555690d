"""Peak memory of one layer on a CPU at several lengths, in a process of its own; prints JSON.

python -m experiments.runtime.memory '{"name": "hyena", "training": false, "width": 256, "tokens": 16384,
                                       "lengths": [512, 1024]}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.runtime.layers import call, peak_bytes

ROOT = Path(__file__).resolve().parents[2]


def measure(name: str, training: bool, width: int, tokens: int, lengths: list[int]) -> list[int | None]:
    """Bytes at the peak of a first call of each length, beyond weights and inputs."""
    call(name, width, 64, 64, training=training)()  # threads, and what libraries keep
    return [peak_bytes(call(name, width, length, tokens, training=training)) for length in lengths]


def apart(**settings: Any) -> list[int | None]:
    """:func:`measure` in a process of its own, where what is freed goes back to the system at once."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.runtime.memory", json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr[-2000:]}")
    found: list[int | None] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
