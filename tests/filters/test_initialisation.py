"""Deferred and sharded initialisation: the same filters as those initialised at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from helpers.processes import in_group
from hyena import HyenaFilter, HyenaOperator
from hyena.filters import ExplicitFilter, ExponentialWindow, Filter, LearnedEncoding, ModalFilter

FILTERS: dict[str, Callable[..., Filter]] = {
    "hyena": lambda **at: HyenaFilter(4, 300, 2, **at),
    "two-sided": lambda **at: HyenaFilter(4, 300, 2, causal=False, **at),
    "tables": lambda **at: HyenaFilter(
        4, 300, 2, encoding=LearnedEncoding(33, 300, **at), window=ExponentialWindow(4, 2, trainable=True, **at), **at
    ),
    "explicit": lambda **at: ExplicitFilter(4, 300, 2, taps=7, **at),
    "modal": lambda **at: ModalFilter(4, 300, 2, modes=3, **at),
    "real modal": lambda **at: ModalFilter(4, 300, 2, modes=3, real=True, **at),
}


def poisoned(name: str) -> Filter:
    """Without memory first, then with memory that holds nothing useful."""
    h = FILTERS[name](device=torch.device("meta")).to_empty(device="cpu")
    with torch.no_grad():
        for t in h.state_dict().values():
            t.fill_(torch.nan)
    return h


def reset(modules: Iterable[nn.Module]) -> None:
    for m in modules:
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()


def breadth_first(m: nn.Module) -> list[nn.Module]:
    found = [m]
    for module in found:
        found += module.children()
    return found


ORDERS: dict[str, Callable[[nn.Module], Iterable[nn.Module]]] = {
    "all at once": lambda m: [m],
    "parents first": lambda m: m.modules(),
    "children first": lambda m: reversed(list(m.modules())),
    "breadth first": breadth_first,
    "leaves alone": lambda m: [part for part in reversed(list(m.modules())) if part is not m],
}


def norms(h: Filter) -> Tensor:
    taps = h(300).double()
    half = taps if h.causal else taps[:, 299:]
    return half.square().sum(1).sqrt()


WITHOUT_PARTS = ("explicit", "modal", "real modal")


@pytest.mark.parametrize(
    ("name", "order"), [(n, o) for n in FILTERS for o in ORDERS if o != "leaves alone" or n not in WITHOUT_PARTS]
)
def test_every_order_of_initialisation(name: str, order: str) -> None:
    h = poisoned(name)
    reset(ORDERS[order](h))
    assert all(t.isfinite().all() for t in h.state_dict().values())
    if name != "explicit":  # whose norm is 1 on average
        torch.testing.assert_close(norms(h), torch.ones(2, 4, dtype=torch.float64), rtol=1e-3, atol=0)
    if isinstance(h, HyenaFilter):
        fresh = FILTERS[name]()
        for part in ("encoding", "window"):
            want = getattr(fresh, part).state_dict()
            for key, t in getattr(h, part).state_dict().items():
                torch.testing.assert_close(t, want[key])


@pytest.mark.parametrize("name", FILTERS)
def test_a_seed_gives_the_same_filter(name: str) -> None:
    at_once, h = FILTERS[name](), poisoned(name)
    torch.manual_seed(3)
    at_once.reset_parameters()
    torch.manual_seed(3)
    h.reset_parameters()
    for key, t in h.state_dict().items():
        torch.testing.assert_close(t, at_once.state_dict()[key], msg=lambda m, key=key: f"{key}: {m}")


def test_explicit_taps_have_unit_norm_on_average() -> None:
    assert 0.9 < ExplicitFilter(500, 300, taps=7)(300).square().sum(1).mean() < 1.1
    assert 0.9 < ExplicitFilter(500, 300, taps=7, causal=False)(300).square().sum(1).mean() < 1.1


def test_trained_filters_keep_their_norm() -> None:
    """Encoding and window can be initialised again (a buffer that a checkpoint lacks) without scaling anything."""
    h = HyenaFilter(4, 300)
    with torch.no_grad():
        h.ffn.out.weight.mul_(2)
        want = h(300)
        h.encoding.reset_parameters()
        h.window.reset_parameters()
        assert torch.equal(h(300), want)


@in_group
def sharded(rank: int, processes: int, folder: str) -> None:
    """What each of two processes does."""
    mesh = distributed.init_device_mesh("cpu", (processes,))
    for name in FILTERS:
        for seed in (3, rank):  # the same on every process, or not
            h = FILTERS[name](device=torch.device("meta"))
            fully_shard(h, mesh=mesh)
            h.to_empty(device="cpu")
            torch.manual_seed(seed)
            reset(h.modules() if seed == rank else [h])
            whole = {k: t.full_tensor() if hasattr(t, "full_tensor") else t for k, t in h.state_dict().items()}
            again = FILTERS[name]()
            torch.manual_seed(3)
            again.reset_parameters()
            if seed == 3:
                for key, t in again.state_dict().items():
                    torch.testing.assert_close(whole[key], t, rtol=1e-5, atol=1e-6)
            again.load_state_dict(whole)
            torch.testing.assert_close(h(300), again(300))
            if name != "explicit":
                torch.testing.assert_close(norms(again), torch.ones(2, 4).double(), rtol=1e-3, atol=0)
    mixed_precision(mesh)
    single_linears(mesh)


def mixed_precision(mesh: distributed.DeviceMesh) -> None:
    """Filters sharded apart, without the policy of what is around them, compute from float32 weights."""
    torch.manual_seed(0)
    op, x = HyenaOperator(8, 40), torch.randn(2, 40, 8)
    taps = op.conv.filter(40).detach()
    seen = []
    op.conv.filter.register_forward_hook(lambda module, args, h: seen.append(h.detach()))
    for m in op.modules():
        if isinstance(m, Filter):
            fully_shard(m, mesh=mesh)
    fully_shard(op, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    y = op(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(seen[0], taps)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in op.parameters())


def single_linears(mesh: distributed.DeviceMesh) -> None:
    torch.manual_seed(0)
    h = HyenaFilter(8, 40, dtype=torch.float64)
    want = h(40).detach()
    for layer in (*h.ffn.hidden, h.ffn.out):
        fully_shard(layer, mesh=mesh)
    fully_shard(h, mesh=mesh)
    got = h(40)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.full_tensor().abs().sum() > 0 for p in h.parameters())


def test_sharded_filters_are_initialised(tmp_path: Path) -> None:
    multiprocessing.spawn(sharded, (2, str(tmp_path)), nprocs=2)
