"""``torch.compile`` in one graph and ``torch.export``, with lengths that change."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers.cases import make_mask, offsets, rand
from helpers.operators import D, build
from hyena import HyenaOperator, functional

# Traces go through the same code for most settings; these take every branch of it once.
CONFIG = pytest.mark.parametrize("config", ["default", "order-1", "two-sided", "heads", "blocks"])
LENGTHS = [22, 10, 34, 64, 66, 90, 96]


@pytest.fixture(autouse=True)
def _no_graphs_left() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(m: HyenaOperator, fn: object, u: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    u = u.detach().requires_grad_()
    y = fn(u, mask)
    return [y, *torch.autograd.grad(y.square().sum(), [u, *(p for p in m.parameters() if p.numel() > 0)])]


@CONFIG
def test_one_graph_for_all_lengths(config: str) -> None:
    """Forward and backward; after the second length nothing is compiled again."""
    m = build(config)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    for i, length in enumerate(LENGTHS):
        u = rand(2, length, D, seed=length).float()
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            got = results(m, compiled, u)
        for g, w in zip(got, results(m, m, u), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * max(1.0, w.abs().max().item()))


def test_inductor_with_masks(device: str) -> None:
    m = build("default").to(device)
    compiled = torch.compile(m, fullgraph=True, dynamic=True)
    for i, length in enumerate((22, 34, 64, 90)):
        u, mask = rand(2, length, D).float().to(device), make_mask("random", 2, length).to(device)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = results(m, compiled, u, mask)
        for g, w in zip(got, results(m, m, u, mask), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5 * max(1.0, w.abs().max().item()))


def test_compiled_in_half_precision_and_channel_major() -> None:
    """What a graph expects of memory order is what the ops give."""
    m = build("default").bfloat16()
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    u = rand(2, D, 22).bfloat16().transpose(1, 2)
    torch.testing.assert_close(compiled(u), m(u), rtol=2e-2, atol=2e-2)


def test_compiled_eval_follows_the_weights() -> None:
    m, u = build("default").eval(), rand(2, 22, D).float()
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(u), m(u))
            for p in m.parameters():
                p.mul_(1.1)


def test_compiled_packed_rows() -> None:
    m, u = build("default").double(), rand(1, 23, D)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    for sizes in ([5, 17, 1], [17, 0, 6]):
        at = offsets(sizes)
        torch.testing.assert_close(compiled(u, None, at, 17), m(u, None, at))


def test_compiled_functions() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def f(x: Tensor, h: Tensor, d: Tensor, weight: Tensor) -> Tensor:
        return functional.fft_conv(functional.short_conv(x, weight), h, d)

    h, d, weight = rand(50, 4), rand(4), rand(4, 3)
    for i, length in enumerate((70, 90, 200)):
        x = rand(2, length, 4)
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            got = f(x, h, d, weight)
        torch.testing.assert_close(got, functional.fft_conv(functional.short_conv(x, weight), h, d))


@CONFIG
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_export_with_any_length(config: str, mode: str) -> None:
    m = build(config).train(mode == "train")
    half = torch.export.Dim("half", min=2, max=48)
    # A two-sided filter has length - 1 lags on one side, and a trace takes sizes of 0 and 1 for special.
    length = {1: 2 * half if config == "blocks" else torch.export.Dim("length", min=3, max=96)}
    mask = make_mask("random", 2, 22) if config != "blocks" else None
    shapes = {"u": length, "mask": length if mask is not None else None}
    program = torch.export.export(m, (rand(2, 22, D).float(), mask), dynamic_shapes=shapes)
    for n in LENGTHS:
        u, mask = rand(2, n, D).float(), make_mask("random", 2, n) if mask is not None else None
        torch.testing.assert_close(program.module()(u, mask), m(u, mask), rtol=1e-4, atol=1e-5)


def test_export_saves_and_loads(tmp_path: object) -> None:
    m, u = build("default").eval(), rand(2, 22, D).float()
    torch.export.save(torch.export.export(m, (u,)), f"{tmp_path}/operator.pt2")
    loaded = torch.export.load(f"{tmp_path}/operator.pt2").module()
    torch.testing.assert_close(loaded(u), m(u))


def test_a_compiled_module_can_be_copied() -> None:
    m, u = build("default"), rand(2, 22, D).float()
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    compiled(u)
    torch.testing.assert_close(copy.deepcopy(compiled)(u), m(u))
