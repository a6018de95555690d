"""``hyena_tune``, the run-time choices of the CUDA kernels: on the host, with kernels built for it (``HYENA_TUNE``)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena import ops
from hyena.ops._extension import EXTENSION

# What is in use: loading the file here would register kernels where tests want none.
LIBRARY = EXTENSION.library
pytestmark = pytest.mark.skipif(
    not (hasattr(LIBRARY, "hyena_tune") and hasattr(LIBRARY, "hyena_cpu_kernels")),
    reason="these are not the CUDA kernels on the host, to be tuned",
)
NAMES = ("rows_each", "threads", "round_bytes", "carveout", "slices", "radices", "fixed")


def tune(name: str, value: int) -> int:
    assert LIBRARY is not None
    return LIBRARY.hyena_tune(name.encode(), ctypes.c_int64(value))


@pytest.fixture(autouse=True)
def untuned() -> Iterator[None]:
    yield
    for name in NAMES:
        assert tune(name, -1) == 0


def both(length: int, rows: int, channels: int) -> list[Tensor]:
    """The convolution and its gradients."""
    torch.manual_seed(length)
    size = ops.transform_length(length)
    arguments = [torch.randn(rows, length, channels) for _ in range(3)]
    h, d = torch.randn(1, length, channels) / length**0.5, torch.randn(channels)
    leaves = [t.requires_grad_() for t in (*arguments, h, d)]
    v, pre, post, h, d = leaves
    y = ops.gated_conv(v, ops.filter_spectrum(h, size)[0], d, pre, post)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def launches(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Blocks and threads of the launches of each name since the file was last read."""
    found: dict[str, list[tuple[int, int]]] = {}
    for line in path.read_text().splitlines():
        blocks, threads, _, name = line.split(" ", 3)
        found.setdefault(name, []).append((int(blocks), int(threads)))
    path.unlink()
    return found


@pytest.mark.parametrize(
    ("name", "value", "shared", "length", "program", "blocks", "threads"),
    [
        ("rows_each", 1, 1 << 18, 1000, "convolution", 7 * 3, 128),
        ("rows_each", 3, 1 << 18, 1000, "convolution", 3 * 3, 128),
        ("rows_each", 8, 1 << 18, 1000, "convolution", 3, 128),
        ("threads", 96, 1 << 18, 4000, "convolution", None, 96),
        ("threads", 512, 1 << 18, 4000, "convolution's gradient", None, 512),
        ("slices", 1, 1 << 18, 1000, "convolution's gradient", 3, 128),
        ("slices", 5, 1 << 18, 1000, "convolution's gradient", 15, 128),
        ("slices", 100, 1 << 18, 1000, "convolution's gradient", 21, 128),
        ("round_bytes", 1024, 1 << 18, 40000, "columns in", None, None),
        ("radices", 1, 1 << 18, 8192, "convolution", None, None),
        ("radices", 2, 1 << 18, 8192, "convolution", None, None),
        ("carveout", 50, 1 << 18, 1000, "convolution", None, None),
    ],
)
def test_choices_are_taken_and_change_no_result(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    value: int,
    shared: int,
    length: int,
    program: str,
    blocks: int | None,
    threads: int | None,
) -> None:
    noted = tmp_path / "launches"
    monkeypatch.setenv("HYENA_EMULATED_SHARED", str(shared))
    monkeypatch.setenv("HYENA_EMULATED_LAUNCHES", str(noted))
    rows, channels = (7, 5) if length < 4000 else (2, 1)
    want = both(length, rows, channels)
    before = launches(noted)
    assert tune(name, value) == 0
    got = both(length, rows, channels)
    after = launches(noted)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    assert all(blocks in (None, b) and threads in (None, t) for b, t in after[program])
    if name == "round_bytes":  # one row of one channel at a time
        assert len(after[program]) == 2 * rows * channels > len(before[program])
    if name == "radices":  # other passes, in other roundings and another order of the spectrum
        assert not all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_what_cannot_be_chosen() -> None:
    assert tune("rows", 1) == 1
    for name, value in (("threads", 100), ("threads", 1024), ("threads", 32), ("carveout", 101), ("radices", 3)):
        assert tune(name, value) == 2
    for name in NAMES:
        assert tune(name, -2) == 2
        assert tune(name, -1) == 0


@pytest.mark.parametrize("length", [1000, 1024, 2048, 4090, 8192, 16001])
@pytest.mark.parametrize("rows", ["plain", "masked", "packed", "no taps", "one tap"])
def test_kernels_for_one_length_compute_what_those_for_any_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int, rows: str
) -> None:
    noted = tmp_path / "launches"
    monkeypatch.setenv("HYENA_EMULATED_SHARED", str(227 * 1024))
    monkeypatch.setenv("HYENA_EMULATED_LAUNCHES", str(noted))
    torch.manual_seed(length)
    batch, channels = 2, 3 if length < 2000 else 1
    z = torch.randn(batch, length, 3 * channels, dtype=torch.bfloat16)
    weight, h = torch.randn(3 * channels, 1 if rows == "one tap" else 3), torch.randn(1, length, channels) / length**0.5
    d = torch.randn(1, channels)
    mask = torch.rand(batch, length) > 0.1 if rows == "masked" else None
    offsets = None
    if rows == "packed":
        z = z.reshape(1, -1, 3 * channels)
        offsets = torch.tensor([0, length // 3, length + 1, 2 * length])

    def results() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (z, weight, h, d)]
        spectrum = ops.filter_spectrum(leaves[2], ops.transform_length(length))
        if rows == "no taps":
            pre, v, post = leaves[0].chunk(3, -1)
            y = ops.gated_conv(v, spectrum[0], leaves[3][0], pre, post)
            leaves.pop(1)
        else:
            y = ops.recurrence(leaves[0], leaves[1], None, spectrum, leaves[3], mask, offsets)
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    assert tune("fixed", 1) == 0
    got = results()
    assert tune("fixed", 0) == 0
    want = results()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-2, atol=1e-5 * float(b.abs().max()))
    names = noted.read_text()
    assert ("of one length" in names) == (rows not in ("masked", "one tap"))
    assert names.count("of one length") in (0, 2)
