"""What only a GPU shows: streams, waiting, memory, large tensors, plans of every size.

The op tests (``test_ops_*.py``) compare the kernels with the oracle; here the judge is the fallback in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from helpers import gated_conv, recurrence
from helpers.cases import Tier, offsets, place, rand, run
from helpers.gpu import (
    A_WHILE,
    DEVICE,
    FALLBACK,
    GPU,
    LENGTHS,
    both_ways,
    check,
    enough_memory,
    in_a_process_of_its_own,
    not_waiting,
    operands,
    same,
)
from hyena import HyenaOperator, ops
from hyena.ops._layout import _is_fast

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _kernels(needs_cuda_kernels: None) -> None:
    pass


def test_plans_of_every_size_that_a_block_may_have() -> None:
    """Every transform length across the sizes where devices begin to split: in full, and one position short."""
    for i, points in enumerate(p for p in range(16, 40_000) if (p < 200 or p % 16 == 0) and _is_fast(p)):
        length = points - i % 2
        x = recurrence.inputs(2, length, 3, mask="random")
        try:
            check(partial(recurrence.convolve, size=points), x, rand(2, length, 3), torch.float32)
        except AssertionError as wrong:
            raise AssertionError(f"{points} points, {length} positions: {wrong}") from wrong


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("length", [59049, 131072, 1_000_000, 1 << 20, (1 << 22) - 5, 1 << 22])
def test_long_rows(length: int, causal: bool) -> None:
    enough_memory(8)
    x = recurrence.inputs(1, length, 2, causal=causal)
    check(partial(recurrence.convolve, causal=causal), x, rand(1, length, 2), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_many_rows_and_channels(length: int, dtype: torch.dtype) -> None:
    """More than the device takes at once, so that rows are sliced and long ones go in rounds."""
    x = gated_conv.inputs(4, length, 96, length, 96)
    check(gated_conv.convolve, x, rand(4, length, 96), dtype)


def test_more_rows_than_a_grid_is_wide_in_its_smaller_dimensions() -> None:
    check(recurrence.convolve, recurrence.inputs(70_001, 3, 2), rand(70_001, 3, 2), torch.float32)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_current_stream(length: int) -> None:
    """What was queued in another stream before the call is done before the kernels begin."""
    x, dy = operands(length), rand(2, length, 6).float().to(DEVICE)
    want, late, side = both_ways(x, dy), torch.zeros_like(x[0]), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(A_WHILE // 10)
        late.copy_(x[0])
        got = both_ways((late, *x[1:]), dy)
    side.synchronize()
    same(got, want)


@pytest.mark.parametrize("length", LENGTHS)
def test_ops_do_not_wait(length: int) -> None:
    x, dy = operands(length), rand(2, length, 6).float().to(DEVICE)
    want = both_ways(x, dy)
    with not_waiting():
        got = both_ways(x, dy)
    same(got, want)


@pytest.mark.parametrize("mode", ["train", "eval", "packed", "masked"])
def test_the_operator_does_not_wait(mode: str) -> None:
    op = HyenaOperator(64, 3000, device=DEVICE, dtype=torch.bfloat16).train(mode != "eval")
    rows = [700, 0, 1800, 500]
    u = torch.randn(1, sum(rows), 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=mode != "eval")
    more = {
        "packed": {"cu_seqlens": offsets(rows).to(DEVICE), "max_seqlen": 1800},
        "masked": {"mask": torch.rand(1, sum(rows), device=DEVICE) < 0.7},
    }.get(mode, {})

    def step() -> None:
        with torch.set_grad_enabled(mode != "eval"):
            y = op(u, **more)
            if mode != "eval":
                y.backward(torch.ones_like(y))

    for _ in range(2):
        step()
    with not_waiting():
        step()


@pytest.mark.parametrize("length", LENGTHS)
def test_packed_rows_on_the_device(length: int) -> None:
    """Each gives what it gives alone, to rounding (its own transform is a shorter one), and nobody waits."""
    z, weight, bias, spectrum, d = operands(length, batch=1)
    sizes = [length // 3, 0, 1, length - length // 3 - 1]
    at = offsets(sizes).to(DEVICE)
    ops.recurrence(z, weight, bias, spectrum, d, cu_seqlens=at)
    with not_waiting():
        y = ops.recurrence(z, weight, bias, spectrum, d, cu_seqlens=at)
    for begin, end in pairwise(at.tolist()):
        if end > begin:
            alone = ops.recurrence(
                z[:, begin:end].transpose(1, 2).contiguous().transpose(1, 2), weight, bias, spectrum, d
            )
            torch.testing.assert_close(y[:, begin:end], alone)


@pytest.mark.parametrize("at", [[0, 9, 5, 20], [1, 20], [0, 19], [0, 18, 20]], ids=["falls", "begins", "ends", "long"])
def test_wrong_offsets_on_the_device_stop_with_a_message(at: list[int]) -> None:
    done = in_a_process_of_its_own(f"""
spectrum = ops.filter_spectrum(torch.randn(1, 16, 4, device="cuda"), 16)[0]
y = ops.gated_conv(torch.randn(1, 20, 4, device="cuda"), spectrum, cu_seqlens=torch.tensor({at}, device="cuda"))
torch.cuda.synchronize()
""")
    assert done.returncode != 0
    assert "of cu_seqlens runs from" in done.stdout + done.stderr


@pytest.mark.parametrize("length", LENGTHS)
def test_another_device_than_the_current_one(length: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, dy = operands(length), rand(2, length, 6).float().to(DEVICE)
    got = both_ways(tuple(t.to("cuda:1") for t in x), dy.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    for a, b in zip(got, both_ways(x, dy), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-4)


def test_rows_beyond_two_to_the_31_elements() -> None:
    """The first and the last rows of a batch give what they give alone."""
    batch, channels, length = 2049, 1024, 1024
    enough_memory(28)
    v = torch.randn(batch, channels, length, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    assert v.numel() > 2**31
    spectrum = ops.filter_spectrum(torch.randn(1, length, 1, device=DEVICE) / 32, length)[0]
    d = torch.randn(channels, device=DEVICE)
    y = ops.gated_conv(v, spectrum, d)
    dv = torch.ops.hyena.gated_conv_backward(y, v, spectrum, d, None, None, None, False)[0]
    for rows in (slice(0, 2), slice(batch // 2, batch // 2 + 2), slice(batch - 2, batch)):
        torch.testing.assert_close(y[rows], ops.gated_conv(v[rows], spectrum, d))
        alone = torch.ops.hyena.gated_conv_backward(y[rows], v[rows], spectrum, d, None, None, None, False)[0]
        torch.testing.assert_close(dv[rows], alone)


def test_long_rows_beyond_two_to_the_31_elements() -> None:
    channels, length = 513, 1 << 22
    enough_memory(20)
    v = torch.randn(1, channels, length, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
    assert v.numel() > 2**31
    spectrum = ops.filter_spectrum(torch.randn(1, length, 1, device=DEVICE) / 2048, length)[0]
    y = ops.gated_conv(v, spectrum)
    for c in (0, channels - 1):
        torch.testing.assert_close(y[..., c : c + 1], ops.gated_conv(v[..., c : c + 1], spectrum))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_same_bits_twice(length: int) -> None:
    x, dy = operands(length, 9, 130), rand(9, length, 130).float().to(DEVICE)
    same(both_ways(x, dy), both_ways(x, dy))


def test_float64_goes_to_the_fallback() -> None:
    """Spectra in the fallback's layout, the same bits, and second derivatives."""
    assert ops.has_kernel("recurrence", torch.device(DEVICE))
    assert not ops.has_kernel("recurrence", torch.device(DEVICE), torch.float64)
    x = place(recurrence.inputs(2, 40, 3), GPU, torch.float64)
    dy = rand(2, 40, 3).to(DEVICE)
    results = []
    for tier in (GPU, FALLBACK):
        with tier():
            got = run(recurrence.convolve, x, dy)
            results.append([ops.filter_spectrum(x["h"], 40), got.output, *got.gradients.values()])
    same(*results)
    small = place(recurrence.inputs(1, 5, 2), GPU, torch.float64)
    leaves = tuple(t.requires_grad_() for t in small.values() if t is not None)
    assert torch.autograd.gradgradcheck(recurrence.convolve, leaves)


def test_second_derivatives_of_the_kernels() -> None:
    """In float32, through the fallback's formula on the kernels' spectra."""

    def penalty(dtype: torch.dtype) -> list[Tensor]:
        x = place(recurrence.inputs(2, 300, 3), GPU, dtype)
        leaves = [t.requires_grad_() for t in x.values() if t is not None]
        (g,) = torch.autograd.grad(recurrence.convolve(*leaves).square().sum(), leaves[0], create_graph=True)
        return list(torch.autograd.grad(g.square().sum(), leaves))

    for got, want in zip(penalty(torch.float32), penalty(torch.float64), strict=True):
        error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
        assert error < 1e-5


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_in_one_graph_under_autocast(backend: str) -> None:
    op = HyenaOperator(64, 2048, device=DEVICE)
    compiled = torch.compile(op, fullgraph=True, backend=backend)
    u = torch.randn(2, 2048, 64, device=DEVICE)

    def results(layer: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16):
            y = layer(u)
        assert y.dtype == torch.bfloat16
        return [y, *torch.autograd.grad(y.float().square().mean(), list(op.parameters()))]

    for got, want in zip(results(compiled), results(op), strict=True):
        assert (got - want).norm() <= 0.05 * want.norm()


@pytest.mark.parametrize("length", LENGTHS)
def test_opcheck(length: int) -> None:
    x = operands(length)
    for t in x:
        t.requires_grad_()
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.hyena.recurrence.default, (*x, None, None, None, False), test_utils=utils)


@pytest.mark.parametrize("length", [8192, 65536])
def test_a_training_step_takes_a_quarter_of_the_memory(length: int) -> None:
    batch, channels = 65536 // length, 256
    enough_memory(16)

    def peak(tier: Tier) -> int:
        with tier():
            h = torch.randn(1, length, channels, device=DEVICE) / length**0.5
            spectrum = ops.filter_spectrum(h, ops.transform_length(length))
            z = torch.randn(batch, 3 * channels, length, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
            x = (z, torch.randn(3 * channels, 3, device=DEVICE), torch.randn(3 * channels, device=DEVICE), spectrum)
            d = torch.randn(1, channels, device=DEVICE)
            dy = torch.randn(batch, channels, length, device=DEVICE, dtype=torch.bfloat16).transpose(1, 2)
            both_ways((*x, d), dy)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            both_ways((*x, d), dy)
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before

    kernels, fallback = peak(GPU), peak(FALLBACK)
    assert kernels <= fallback / 4, f"{kernels / 1e6:.0f} MB, the fallback {fallback / 1e6:.0f} MB"
