"""Programs in plain aten: equal to the definitions at any batch and length, and none of the library's ops left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from helpers import oracle
from helpers.cases import make_mask, offsets, rand
from helpers.operators import CONFIGS, D, build, expected
from hyena import HyenaOperator, functional, ops
from hyena.export import decompose

ANY = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


def namespaces(program: ExportedProgram) -> set[str]:
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {getattr(op, "namespace", "python") for op in nodes}


@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in ("head-mixing", "blocks")])
def test_operator(config: str) -> None:
    """A program of one length."""
    m, u = build(config).double().eval(), rand(2, 22, D)
    masked = "two-sided" not in config and config != "heads"
    mask = make_mask("random", 2, 22) if masked else None
    program = torch.export.export(m, (u, mask))
    before = str(program.graph)
    plain = decompose(program)
    assert namespaces(plain) <= {"aten", "python"}
    assert str(program.graph) == before
    torch.testing.assert_close(plain.module()(u, mask), expected(m, u, mask), rtol=1e-10, atol=1e-10)


# A two-sided filter has length - 1 lags on one side, and a trace takes sizes of 0 and 1 for special; five taps are five
# in a program if they are in the row that it was traced with.
@pytest.mark.parametrize(("config", "shortest"), [("default", 1), ("two-sided", 3), ("heads", 1), ("explicit", 5)])
def test_any_batch_and_length(config: str, shortest: int) -> None:
    """One program, traced with a short row."""
    m = build(config).double().eval()
    program = torch.export.export(m, (rand(2, 19, D),), dynamic_shapes=(ANY,))
    plain = decompose(program).module()
    for batch, length in ((1, shortest), (3, shortest), (2, 19), (1, 64), (2, 65), (1, 96)):
        u = rand(batch, length, D, seed=length)
        torch.testing.assert_close(plain(u), expected(m, u), rtol=1e-10, atol=1e-10)


def test_in_training_mode_without_no_grad() -> None:
    m, u = build("default"), rand(2, 22, D).float()
    plain = decompose(torch.export.export(m, (u,)))
    torch.testing.assert_close(plain.module()(u).double(), expected(m.double(), u.double()), rtol=1e-4, atol=1e-5)


def test_in_half_precision() -> None:
    m, u = build("default").bfloat16().eval(), rand(2, 22, D).bfloat16()
    y = decompose(torch.export.export(m, (u,))).module()(u)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, m(u), rtol=2e-2, atol=2e-2)


class Functions(nn.Module):
    """Convolutions without modules: short, of few taps, gated, two-sided, of rows with filters of their own."""

    def forward(self, x: Tensor, few: Tensor, long: Tensor, weight: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        return (
            functional.short_conv(x, weight),
            functional.gated_conv(x, few, d, x, x, causal=False),
            functional.gated_conv(x, long, d, pre=x),
            functional.fft_conv(x, torch.stack([long, 2 * long])),
        )


def test_functions() -> None:
    x, few, long = rand(2, 70, 4), rand(5, 2, seed=1), rand(70, 4, seed=2)
    args = (x, few, long, rand(4, 3, seed=3), rand(4, seed=4))
    program = torch.export.export(Functions(), args)
    plain = decompose(program)
    assert namespaces(plain) <= {"aten", "python"}
    own = {str(node.target) for node in program.graph.nodes if "hyena" in str(node.target)}
    assert {"hyena.short_conv.default", "hyena.direct_conv.default", "hyena.gated_conv.default"} <= own
    for got, want in zip(plain.module()(*args), Functions()(*args), strict=True):
        torch.testing.assert_close(got, want)


class Ops(nn.Module):
    """Ops that a trace of modules takes only where their weights are plain tensors."""

    def __init__(self, value_filter: bool) -> None:
        super().__init__()
        self.filters = 2 if value_filter else 1

    def forward(self, z: Tensor, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        layers = [(rand(6, 5), rand(6, seed=1)), (rand(6, 6, seed=2), rand(6, seed=3))]
        out, deltas = rand(4 * self.filters, 6, seed=4), rand(4 * self.filters, seed=5)
        time = torch.linspace(0, 1, features.size(0), dtype=features.dtype)
        h = ops.implicit_filter(features, time, layers, rand(6, seed=6), out, deltas, 0.1, self.filters)
        spectrum = ops.filter_spectrum(h, ops.transform_length(z.size(1)))
        weight, bias, d = rand(12, 3, seed=7), rand(12, seed=8), rand(self.filters, 4, seed=9)
        y = ops.recurrence(z, weight, bias, spectrum, d, mask, None, rand(12, seed=10))
        return h, y, torch.ops.hyena.project(y, rand(3, 4, seed=11), None)


@pytest.mark.parametrize("value_filter", [False, True])
def test_fused_ops(value_filter: bool) -> None:
    z, features, mask = rand(2, 22, 12), rand(22, 5, seed=1), make_mask("random", 2, 22)
    m = Ops(value_filter)
    program = torch.export.export(m, (z, features, mask))
    own = {str(node.target) for node in program.graph.nodes if "hyena" in str(node.target)}
    assert {"hyena.recurrence.default", "hyena.implicit_filter.default", "hyena.project.default"} <= own
    plain = decompose(program)
    assert namespaces(plain) <= {"aten", "python"}
    h, y, out = plain.module()(z, features, mask)
    t = torch.linspace(0, 1, 22, dtype=h.dtype)
    x = torch.sin(rand(6, seed=6) * (features @ rand(6, 5).T + rand(6, seed=1)))
    x = torch.sin(rand(6, seed=6) * (x @ rand(6, 6, seed=2).T + rand(6, seed=3)))
    window = torch.exp(-t[:, None] * rand(4 * m.filters, seed=5).abs()) + 0.1
    torch.testing.assert_close(h, ((x @ rand(4 * m.filters, 6, seed=4).T) * window).view(22, -1, 4).transpose(0, 1))
    zc = oracle.short_conv(z + rand(12, seed=10), rand(12, 3, seed=7), rand(12, seed=8), mask)
    want = oracle.recurrence(list(zc.chunk(3, dim=2)), h, rand(m.filters, 4, seed=9))
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(out, want @ rand(3, 4, seed=11).T)


def test_what_has_no_plain_form_is_named() -> None:
    m = HyenaOperator(D, 64).eval()
    rows = offsets([5, 17])
    packed = torch.export.export(m, (rand(1, 22, D).float(), None, rows, 17))
    with pytest.raises(ValueError, match=r"hyena::short_conv of packed rows \(cu_seqlens\)"):
        decompose(packed)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m, self.state = m, m.init_state(1)

        def forward(self, u: Tensor) -> Tensor:
            return self.m(u, state=self.state.clone())

    with torch.no_grad(), pytest.raises(ValueError, match=r"hyena.extend_tiles_.default.*step_model"):
        decompose(torch.export.export(Steps(), (rand(1, 1, D).float(),)))

    class Given(nn.Module):
        def forward(self, v: Tensor, spectrum: Tensor) -> Tensor:
            return torch.ops.hyena.gated_conv(v, spectrum, None, None, None, None, False)

    with pytest.raises(ValueError, match=r"hyena.gated_conv.default takes a spectrum \(spectrum\)"):
        decompose(torch.export.export(Given(), (rand(1, 8, 4), rand(4, 9, 2))))
    with pytest.raises(TypeError, match=r"HyenaOperator: torch\.export\.export"):
        decompose(m)
