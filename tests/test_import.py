"""What ``import hyena`` imports beside torch: what is not needed by everybody waits until it is."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import sys
import torch
before = set(sys.modules)
import hyena
print(*sorted(set(sys.modules) - before))
"""


def test_nothing_but_itself_and_its_dependency() -> None:
    """Neither torch's compiler, which takes a second, nor any optional package."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} - {"hyena", "torch"} <= {"einops"}
    assert [name for name in done.stdout.split() if name.startswith(("torch._dynamo", "torch._inductor"))] == []
