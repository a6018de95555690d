"""Tables of transforms and working memory: how much is kept, how it is freed, and what a fork finds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from hyena import ops
from hyena.ops._kept import table_bytes
from hyena.ops._library import has_kernel

MOST = 64 << 20  # kKeptTables in csrc/cpu/fft/plan.cpp

pytestmark = pytest.mark.skipif(
    not has_kernel("filter_spectrum", torch.device("cpu")), reason="there are no CPU kernels here"
)


def spectrum_of(points: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return ops.filter_spectrum(torch.ones(1, 3, 1, dtype=dtype), points)


def resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def fast_lengths(most: int) -> list[int]:
    products = (2**a * 3**b * 5**c for a in range(21) for b in range(13) for c in range(9))
    return sorted({n for n in products if 64 < n <= most and n % 16 == 0})


def test_tables_of_many_lengths_stay_within_the_bound() -> None:
    ops.clear_tables()
    lengths = fast_lengths(1 << 20)[-60:]
    assert sum(8 * n for n in lengths) > 4 * MOST
    spectrum_of(lengths[0])
    before = resident()
    for n in lengths:
        spectrum_of(n)
        assert table_bytes() <= MOST
    assert table_bytes() > MOST // 2  # what fits is kept
    if sys.platform == "linux":
        assert resident() - before < 3 * MOST  # tables, working memory, and torch's own


def test_clearing_frees_all_tables() -> None:
    for dtype in (torch.float32, torch.float64):
        spectrum_of(4096, dtype)
    assert table_bytes() >= 4096 * (8 + 16)
    ops.clear_tables()
    assert table_bytes() == 0
    first, second = spectrum_of(4096), spectrum_of(4096)
    assert torch.equal(first, second)


def test_a_table_in_use_stays() -> None:
    """Calls of many lengths from several threads, while another clears: every result is what it is alone."""
    lengths = [96, 1000, 2000, 4096, 5000, 8192]
    x = torch.randn(1, 90, 2, generator=torch.Generator().manual_seed(0))
    want = {n: ops.gated_conv(x, ops.filter_spectrum(x, n)[0]) for n in lengths}
    wrong: list[int] = []
    done = threading.Event()

    def work(turn: int) -> None:
        for i in range(60):
            n = lengths[(i + turn) % len(lengths)]
            if not torch.equal(ops.gated_conv(x, ops.filter_spectrum(x, n)[0]), want[n]):
                wrong.append(n)

    def clear() -> None:
        while not done.is_set():
            ops.clear_tables()

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(3)]
    cleaner = threading.Thread(target=clear)
    for t in (*threads, cleaner):
        t.start()
    for t in threads:
        t.join()
    done.set()
    cleaner.join()
    assert not wrong


FORK = """
import os, sys, threading, time
import torch
torch.set_num_threads(1)
from hyena import ops

x = torch.ones(1, 300, 4)
stop = False
def busy():
    n = 0
    while not stop:
        ops.clear_tables()
        ops.gated_conv(x, ops.filter_spectrum(x, 320 + n % 40 * 16)[0])
        n += 1
threads = [threading.Thread(target=busy) for _ in range(2)]
for t in threads:
    t.start()
want = ops.gated_conv(x, ops.filter_spectrum(x, 640)[0])
failed = 0
for _ in range(25):
    child = os.fork()
    if child == 0:
        torch.equal(ops.gated_conv(x, ops.filter_spectrum(x, 640)[0]), want) or os._exit(1)
        os._exit(0)
    end = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            failed += status != 0
            break
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            stop = True
            sys.exit("a child hangs")
        time.sleep(0.001)
stop = True
for t in threads:
    t.join()
sys.exit(f"{failed} children failed" if failed else 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_other_threads_are_inside() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
