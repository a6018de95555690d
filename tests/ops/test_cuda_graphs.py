"""CUDA graphs of the kernels: recorded, replayed, and made by ``torch.compile``."""

from __future__ import annotations

import pytest
import torch

from helpers.cases import rand
from helpers.gpu import DEVICE, LENGTHS, both_ways, in_a_process_of_its_own, operands, same

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("needs_cuda_kernels")]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_graph_of_forward_and_backward(length: int) -> None:
    x, dy = operands(length), rand(2, length, 6).float().to(DEVICE)
    other = (torch.randn_like(x[0]), *x[1:])
    wants = [both_ways(x, dy), both_ways(other, dy)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both_ways(x, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph, z = torch.cuda.CUDAGraph(), x[0].clone()
    with torch.cuda.graph(graph):
        got = both_ways((z, *x[1:]), dy)
    for values, want in zip((x[0], other[0]), wants, strict=True):
        z.copy_(values)
        graph.replay()
        torch.cuda.synchronize()
        same(got, want)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_first_call_of_all_inside_a_capture(length: int) -> None:
    done = in_a_process_of_its_own(f"""
h, v = torch.randn(1, {length}, 4, device="cuda"), torch.randn(2, {length}, 4, device="cuda")
def call():
    spectrum = ops.filter_spectrum(h, ops.transform_length({length}))[0]
    y = ops.gated_conv(v, spectrum, None, v, v)
    return y, *torch.ops.hyena.gated_conv_backward(y, v, spectrum, None, v, v, None, False)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    got = call()
for _ in range(2):
    graph.replay()
torch.cuda.synchronize()
assert all(torch.equal(a, b) for a, b in zip(got, call()))
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("length", LENGTHS)
def test_the_first_call_of_all_warms_up_for_a_graph(length: int) -> None:
    """What a call that warms up keeps for later must not lie in the graph's memory."""
    done = in_a_process_of_its_own(f"""
h, v = torch.randn(1, {length}, 4, device="cuda"), torch.randn(2, {length}, 4, device="cuda", requires_grad=True)
def call(v):
    return ops.gated_conv(v, ops.filter_spectrum(h, ops.transform_length({length}))[0], None, v, v)
compiled = torch.compile(call, mode="reduce-overhead", fullgraph=True)
for _ in range(4):
    torch.compiler.cudagraph_mark_step_begin()
    y = compiled(v)
    (got,) = torch.autograd.grad(y.sum(), v)
    y, got = y.clone(), got.clone()
(want,) = torch.autograd.grad(call(v).sum(), v)
torch.testing.assert_close(y, call(v))
torch.testing.assert_close(got, want)
""")
    assert done.returncode == 0, done.stderr
