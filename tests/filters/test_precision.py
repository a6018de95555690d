"""Filters keep float32 weights when what is around them is cast to a lower precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from hyena import HyenaFilter, HyenaOperator
from hyena.filters import S4, S4D, ExplicitFilter, Filter, FourierFilter, ModalFilter, TransferFunctionFilter

LOW = [torch.bfloat16, torch.float16]


def error(run: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, x: Tensor, dtype: torch.dtype) -> float:
    """Relative error in a dtype against the same weights in float64."""
    with torch.no_grad():
        want = run(copy.deepcopy(module).double(), x.double())
        got = run(copy.deepcopy(module).to(dtype), x.to(dtype))
    assert got.dtype == dtype
    return ((got.double() - want).norm() / want.norm()).item()


def attend(module: nn.Module, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.size(1), dtype=x.dtype)
    return module(x, x, x, attn_mask=mask, is_causal=True)[0]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_an_operator_loses_what_attention_loses(dtype: torch.dtype) -> None:
    width, length = 64, 256
    x, attention = torch.randn(2, length, width), nn.MultiheadAttention(width, 4, batch_first=True).eval()
    bound = 2 * error(attend, attention, x, dtype)
    for op in (
        HyenaOperator(width, length),
        HyenaOperator(width, length, order=3),
        HyenaOperator(width, length, causal=False),
    ):
        assert error(lambda m, u: m(u), op.eval(), x, dtype) < bound


CASTS: dict[str, Callable[[nn.Module, torch.dtype], nn.Module]] = {
    "to": lambda m, dtype: m.to(dtype),
    "to with device": lambda m, dtype: m.to("cpu", dtype),
    "half or bfloat16": lambda m, dtype: m.half() if dtype == torch.float16 else m.bfloat16(),
    "type": lambda m, dtype: m.type(dtype),
    "from float64": lambda m, dtype: m.double().to(dtype),
    "twice": lambda m, dtype: m.half().bfloat16(),
}
FILTERS: list[Callable[[], Filter]] = [
    lambda: HyenaFilter(4, 20, 2),
    lambda: ExplicitFilter(4, 20, 2, taps=7),
    lambda: ModalFilter(4, 20, 2, modes=3),
    lambda: S4D(4, 20, 2, modes=3),
    lambda: S4(4, 20, 2, modes=3),
    lambda: FourierFilter(4, 20, 2, modes=3),
]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("make", FILTERS)
def test_casts_stop_at_float32(make: Callable[[], Filter], cast: str, dtype: torch.dtype) -> None:
    source = make()
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"filter": source}))
    want = source(20).detach()
    source(20).sum().backward()
    CASTS[cast](model, dtype)
    assert model[0].weight.dtype.itemsize == 2
    assert all(t.dtype == torch.float32 for t in source.state_dict().values())
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in source.parameters())
    torch.testing.assert_close(source(20), want, rtol=0, atol=0)
    model.double()
    assert all(t.dtype == torch.float64 for t in source.state_dict().values())


@pytest.fixture
def bfloat16_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("bfloat16_by_default")
@pytest.mark.parametrize("make", FILTERS)
def test_filters_are_built_in_float32(make: Callable[[], Filter]) -> None:
    """As libraries do that build a model in the dtype it is loaded in."""
    source = make()
    assert all(t.dtype == torch.float32 for t in source.state_dict().values())
    assert source(20).dtype == torch.float32
    built = HyenaOperator(8, 20)
    assert built.in_proj.weight.dtype == torch.bfloat16
    assert {t.dtype for t in built.conv.filter.state_dict().values()} == {torch.float32}


def test_who_wants_them_cast_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    op = HyenaOperator(8, 20)
    op.conv.filter.keep_float32 = False
    assert {p.dtype for p in op.bfloat16().parameters()} == {torch.bfloat16}
    assert op.conv.filter(20).dtype == torch.float32  # computed in float32, from rounded weights

    class Cast(HyenaFilter):
        keep_float32 = False

    assert Cast(8, 20, dtype=torch.bfloat16).ffn.freq.dtype == torch.bfloat16
    monkeypatch.setattr(Filter, "keep_float32", False)
    assert {p.dtype for p in HyenaOperator(8, 20, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", FILTERS)
def test_half_precision_state_dicts_load(make: Callable[[], Filter], assign: bool) -> None:
    saved = {name: t if "time_unit" in name else t.bfloat16() for name, t in make().state_dict().items()}
    source = make()
    source.load_state_dict(saved, assign=assign)
    for name, t in source.state_dict().items():
        assert t.dtype == torch.float32, name
        assert torch.equal(t, saved[name].float()), name


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", [S4, TransferFunctionFilter, FourierFilter])
def test_lengths_in_half_precision(kind: type[Filter], assign: bool) -> None:
    """bfloat16 has no 257, and the length that a filter was made for is no other one for it."""
    h, other = kind(4, 257), kind(4, 257)
    other.load_state_dict({name: t.bfloat16() for name, t in h.state_dict().items()}, assign=assign)
    assert 257.0 in (t.item() for t in other.buffers())
    with torch.no_grad():
        for p in h.parameters():
            p.copy_(p.bfloat16())
    torch.testing.assert_close(other(257), h(257))


def test_mixed_precision_training_keeps_them() -> None:
    """A bfloat16 model trains its filters in float32: a step far below bfloat16's resolution is taken."""
    op = HyenaOperator(8, 20).bfloat16()
    before = op.conv.filter.ffn.out.weight.detach().clone()
    op(torch.randn(2, 20, 8, dtype=torch.bfloat16)).sum().backward()
    grad = op.conv.filter.ffn.out.weight.grad
    torch.optim.SGD(op.conv.filter.parameters(), lr=1e-4 / grad.abs().max().item() * before.abs().max().item()).step()
    assert 0 < (op.conv.filter.ffn.out.weight - before).abs().max() < 2e-4 * before.abs().max()
