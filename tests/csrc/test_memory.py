"""Memory of long results: that of earlier ones, never that of one in use, and no more than was in use at once."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena import ops
from hyena.ops._library import has_kernel

pytestmark = pytest.mark.skipif(
    not has_kernel("short_conv", torch.device("cpu")), reason="there are no CPU kernels here"
)
CHANNELS, LONG = 256, 1 << 13  # 8 MiB in float32


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def given() -> Tensor:
    ops.clear_tables()
    return torch.randn(1, LONG, CHANNELS, generator=torch.Generator().manual_seed(0))


def result(x: Tensor) -> Tensor:
    return ops.short_conv(x, torch.ones(CHANNELS, 3))


def test_a_result_takes_the_memory_of_one_that_is_gone(given: Tensor) -> None:
    first = result(given)
    place, want = first.data_ptr(), first.clone()
    del first
    second = result(given)
    assert second.data_ptr() == place
    assert torch.equal(second, want)


def test_a_result_in_use_keeps_its_memory(given: Tensor) -> None:
    """Through a view, a slice's storage and another thread's hands too."""
    y = result(given)
    want, view = y.clone(), y[:, 100:, 3]
    del y
    gc.collect()
    others = [result(given).fill_(7) for _ in range(3)]
    assert torch.equal(view, want[:, 100:, 3])
    assert len({t.data_ptr() for t in others} | {view.untyped_storage().data_ptr()}) == 4


def test_what_torch_does_with_a_tensor(given: Tensor, tmp_path: Path) -> None:
    want = result(given).clone()
    torch.save(result(given), tmp_path / "y.pt")
    assert torch.equal(torch.load(tmp_path / "y.pt"), want)
    shared = result(given).share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, want)
    assert torch.equal(torch.from_dlpack(result(given)), want)
    assert torch.equal(torch.add(want, 0, out=result(given)), want)
    y = result(given)
    y.set_(torch.zeros(3))
    assert torch.equal(y, torch.zeros(3))
    assert torch.equal(result(given), want)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@on_linux
@pytest.mark.parametrize("after", ["nothing", "too much was asked for"])
def test_no_more_is_kept_than_was_in_use(after: str) -> None:
    """Rows of many lengths, one after the other; and everything goes when it is asked for."""
    longest = 12 * LONG  # 96 MiB
    x, size = torch.ones(1, longest, CHANNELS), longest * CHANNELS * 4

    def rows_of_many_lengths() -> None:
        for length in range(longest, longest - 40 * 2048, -2048):
            result(x[:, :length])

    rows_of_many_lengths()  # what malloc keeps for itself
    ops.clear_tables()
    before = resident()
    if after != "nothing":
        with pytest.raises(RuntimeError, match=f"could not make a tensor of {1 << 50} bytes"):
            result(x[:, :1].expand(1, 1 << 40, CHANNELS))
    rows_of_many_lengths()
    kept = resident()
    assert kept - before < 1.6 * size
    ops.clear_tables()
    assert resident() - before < 0.2 * size
    assert kept - resident() > 0.5 * size


LITTLE_MEMORY = """
import resource
import torch
from hyena import ops

def result(length):
    return ops.short_conv(x[:, :length], torch.ones(256, 3))

x = torch.ones(1, 1 << 16, 256)
torch.set_num_threads(1)
several = [result(1 << 15) for _ in range(4)]
del several  # 4 x 32 MiB are kept, and would be beside one more
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), -1))
print(result((1 << 15) + 4096).sum().item())
"""


@on_linux
def test_kept_memory_is_given_up_for_what_does_not_fit() -> None:
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
