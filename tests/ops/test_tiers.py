"""Kernels beside the fallback: both against the oracle, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor

from helpers import gated_conv, oracle, recurrence, short_conv
from helpers.cases import DTYPES, Judge, Tier, compare, place, rand, run
from helpers.tolerances import kernel_limit, mean_error
from hyena import ops
from hyena.ops._extension import EXTENSION


@lru_cache
def case(name: str) -> tuple[Callable[..., Tensor], dict, Tensor, Judge]:
    """(op, inputs, gradient of the output, what the oracle says)."""
    kind, length = name.split("-")[0], int(name.split("-")[1])
    if kind == "short_conv":
        fn, want, x = ops.short_conv, oracle.short_conv, short_conv.inputs(2, length, 9, 3, mask="random")
    elif kind == "direct_conv":
        fn, want, x = ops.direct_conv, oracle.gated_conv, gated_conv.inputs(2, length, 9, min(length, 100), 9)
    elif kind == "direct_recurrence":
        x = recurrence.inputs(2, length, 9, taps=min(length, 100), mask="random", z_bias=True)
        fn, want = recurrence.mix, partial(recurrence.matrices, order=2)
    elif kind == "gated_conv":
        fn, want, x = gated_conv.convolve, gated_conv.matrices, gated_conv.inputs(2, length, 9, length, 9)
    else:
        causal = kind != "two_sided_recurrence"
        order = 2 if kind == "recurrence_of_order_2" else 3
        x = recurrence.inputs(2, length, 9, order=order, causal=causal, mask="random", z_bias=order == 2)
        fn, want = partial(recurrence.convolve, causal=causal), partial(recurrence.matrices, order=order, causal=causal)
    dy = rand(2, length, 9)
    return fn, x, dy, Judge.of(want, x, dy)


CASES = [
    f"{kind}-{length}"
    for kind in ("short_conv", "gated_conv", "recurrence", "two_sided_recurrence", "recurrence_of_order_2")
    for length in (65, 1009)
]
CASES += [f"{kind}-{length}" for kind in ("direct_conv", "direct_recurrence") for length in (65, 1009)]
CASES += ["short_conv-20011"]  # long sums


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_is_at_most_twice_as_wrong(tier: Tier, dtype: torch.dtype, name: str) -> None:
    fn, inputs, dy, judge = case(name)
    x = place(inputs, tier, dtype, h=torch.promote_types(dtype, torch.float32))
    errors = {}
    for each in (tier, Tier("fallback", tier.device)):
        with each():
            got = run(fn, x, dy.to(tier.device, dtype))
        errors[each] = judge.errors(got, mean_error)
    limits = {key: kernel_limit(e, got.dtypes()[key]) for key, e in errors[each].items()}
    on_tensor_cores = tier.device == "cuda" or EXTENSION.instructions == "emulated CUDA"
    if name.startswith("direct_conv") and on_tensor_cores and dtype in (torch.bfloat16, torch.float16):
        # Products on tensor cores: whatever the dtype, operands are rounded to float16.
        for parameter in ("d h", "d d"):
            limits[parameter] = max(limits[parameter], torch.finfo(torch.float16).eps)
    wrong = {key: (e, limits[key]) for key, e in errors[tier].items() if e > limits[key]}
    assert not wrong, wrong


@pytest.mark.parametrize("name", CASES)
def test_the_same_call_gives_the_same_bits(tier: Tier, name: str) -> None:
    """Nothing depends on which thread is first."""
    fn, inputs, dy, _ = case(name)
    x = place(inputs, tier, torch.float32)
    with tier():
        first, second = (run(fn, x, dy.to(tier.device, torch.float32)) for _ in range(2))
    assert torch.equal(first.output, second.output)
    for key, g in first.gradients.items():
        assert torch.equal(g, second.gradients[key]), key


@pytest.mark.skipif(EXTENSION.instructions != "emulated CUDA", reason="takes more blocks than a GPU's launch elsewhere")
@pytest.mark.parametrize("name", CASES)
def test_more_blocks_than_a_launch_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in several launches, and give the same bits."""
    fn, inputs, dy, _ = case(name)
    x = place(inputs, Tier("cpu", "cpu"), torch.float32)
    want = run(fn, x, dy.float())
    monkeypatch.setenv("HYENA_EMULATED_BLOCKS", "5")
    got = run(fn, x, dy.float())
    assert torch.equal(got.output, want.output)
    for key, g in got.gradients.items():
        assert torch.equal(g, want.gradients[key]), key


@pytest.mark.parametrize(("batch", "length", "channels"), [(3000, 2, 3), (700, 3, 40), (40, 65, 1)])
def test_sums_over_many_rows(tier: Tier, batch: int, length: int, channels: int) -> None:
    """Shared by many threads, and as exact as any."""
    x = short_conv.inputs(batch, length, channels, 5, mask="random")
    dy = rand(batch, length, channels)
    compare(ops.short_conv, oracle.short_conv, x, dy, tier, torch.float32)


@pytest.mark.parametrize(("batch", "channels", "filters"), [(1, 40, 1), (3, 300, 2), (600, 34, 1)])
def test_sums_over_channels_of_one_filter(tier: Tier, batch: int, channels: int, filters: int) -> None:
    x, dy = gated_conv.inputs(batch, 7, channels, 7, filters), rand(batch, 7, channels)
    compare(gated_conv.convolve, gated_conv.matrices, x, dy, tier, torch.float32)
