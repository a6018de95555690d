"""What a process of a context-parallel run does; imported by the processes that the tests start."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from helpers.live_memory import LiveBytes
from helpers.mixers import CASES, D
from helpers.models import V, build
from helpers.processes import in_group
from hyena import HyenaOperator, ops
from hyena.distributed import context_parallel, gather, shard, sum_gradients
from hyena.distributed.exchange import Flight
from hyena.filters import S4, HyenaFilter
from hyena.models import CausalLM, CausalLMConfig

Check = Callable[[DeviceMesh], None]
LENGTH = 23  # of no use to two processes, nor to four


def pieces(x: Tensor, mesh: DeviceMesh, uneven: bool) -> Tensor:
    """This process's positions; uneven ones, the first has most of them."""
    if not uneven:
        return shard(x, mesh)
    rank, size = mesh.get_local_rank(), mesh.size()
    first = x.size(1) - (size - 1)
    return x[:, :first] if rank == 0 else x[:, first + rank - 1 : first + rank]


def same_as_one_process(
    make: Callable[[], nn.Module],
    u: Tensor,
    mesh: DeviceMesh,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunks: int = 2,
    uneven: bool = False,
    bound: float = 1e-10,
) -> None:
    """Outputs, every gradient and one step of an optimizer, against the module in one piece."""
    torch.manual_seed(1)
    whole = make()
    spread = context_parallel(copy.deepcopy(whole), mesh, chunks=chunks)
    longest = None if cu_seqlens is None else int(cu_seqlens.diff().max())
    packing: dict[str, Any] = {"cu_seqlens": cu_seqlens, "max_seqlen": longest}
    want = whole(u, mask, **packing)
    weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(2))
    kept = weight if mask is None else torch.where(mask[..., None], weight, 0.0)
    (want * kept).sum().backward()
    mine = pieces(u, mesh, uneven).contiguous()
    local_mask = None if mask is None else pieces(mask, mesh, uneven)
    y = spread(mine, local_mask, **packing)
    (y * pieces(kept, mesh, uneven)).sum().backward()
    sum_gradients(spread, mesh)
    got = gather(y.detach(), mesh)
    close(got if mask is None else got[mask], want.detach() if mask is None else want.detach()[mask], "outputs", bound)
    for (name, p), q in zip(whole.named_parameters(), spread.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            close(q.grad, p.grad, f"gradient of {name}", bound)
    for module in (whole, spread):
        torch.optim.AdamW(module.parameters(), lr=1e-2, foreach=False).step()
    assert list(whole.state_dict()) == list(spread.state_dict())
    for name, t in whole.state_dict().items():
        # A step divides by the gradient's size: where that is rounding, so is the step.
        close(spread.state_dict()[name], t, f"{name} after a step", max(bound, 1e-2 if bound > 1e-8 else 1e-6))


def close(got: Any, want: Any, what: str, bound: float) -> None:
    if want.numel() == 0:
        return
    error = (got - want).abs().max().item()
    assert error <= bound * max(1.0, want.abs().max().item()), f"{what}: off by {error:.1e}"


def inputs(batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, LENGTH, D, dtype=dtype, generator=torch.Generator().manual_seed(0))


def _mixer(name: str) -> Check:
    def check(mesh: DeviceMesh) -> None:
        def make() -> nn.Module:
            return CASES[name](dtype=torch.float64)

        if make().units < mesh.size():  # as attention whose heads share keys
            return
        same_as_one_process(make, inputs(), mesh)
        mask = torch.arange(LENGTH) >= torch.tensor([[0], [9]])
        same_as_one_process(make, inputs(), mesh, mask=mask, chunks=1)
        cu_seqlens = torch.tensor([0, 2, 13, LENGTH])
        same_as_one_process(make, inputs(1), mesh, cu_seqlens=cu_seqlens, uneven=True)

    return check


def _sizes(mesh: DeviceMesh) -> None:
    """Channels, lengths and chunks that do not divide."""
    for width, chunks in ((7, 1), (7, 3), (6, 9)):
        u = torch.randn(2, LENGTH, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for order in (1, 2, 3):
            same_as_one_process(
                lambda w=width, n=order: HyenaOperator(w, 40, order=n, dtype=torch.float64),
                u,
                mesh,
                chunks=chunks,
                uneven=order == 2,
            )
    same_as_one_process(lambda: HyenaOperator(D, 40), inputs(dtype=torch.float32), mesh, bound=1e-5)


def _model(name: str) -> Check:
    def check(mesh: DeviceMesh) -> None:
        tokens = torch.randint(V, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        mask = torch.arange(LENGTH) >= torch.tensor([[0], [9]])
        same_as_one_process(lambda: build(name), tokens, mesh)
        same_as_one_process(lambda: build(name), tokens, mesh, mask=mask, uneven=True)
        same_as_one_process(lambda: build(name), tokens[:1], mesh, cu_seqlens=torch.tensor([0, 7, LENGTH]))

        def checkpointed() -> nn.Module:
            import dataclasses

            model = build(name).train()
            model.config = dataclasses.replace(model.config, gradient_checkpointing=True)
            return model

        same_as_one_process(checkpointed, tokens, mesh)

    return check


def _fsdp(mesh: DeviceMesh) -> None:
    """Both axes of a mesh of two by two."""
    from torch.distributed.fsdp import fully_shard

    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    torch.manual_seed(1)
    whole = build("hyena")
    model = copy.deepcopy(whole)
    for block in model.blocks:
        fully_shard(block, mesh=both["dp"])
    fully_shard(model, mesh=both["dp"])
    context_parallel(model, both["cp"], check=False)
    tokens = torch.randint(V, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    whole(tokens).square().sum().backward()
    mine = tokens.chunk(2)[both["dp"].get_local_rank()]
    y = model(shard(mine, both["cp"]))
    (2 * y.square().sum()).backward()  # fully_shard takes the mean over its axis
    sum_gradients(model, both["cp"])
    for (name, p), q in zip(whole.named_parameters(), model.parameters(), strict=True):
        close(q.grad.full_tensor(), p.grad, f"gradient of {name}", 1e-10)


def _bytes(mesh: DeviceMesh) -> None:
    """Two all-to-alls a mixer and pass, of as many bytes as the documentation says."""
    batch, length, order = 2, 4 * LENGTH, 2
    op = context_parallel(HyenaOperator(D, length, order=order, dtype=torch.float64), mesh, check=False, chunks=1)
    u = torch.randn(batch, length, D, dtype=torch.float64)
    sent: list[int] = []
    real = Flight.start

    def counted(self: Flight, x: Tensor) -> None:
        sent.append((sum(self.sent) - self.sent[mesh.get_local_rank()]) * x.element_size())
        real(self, x)

    Flight.start = counted  # type: ignore[method-assign]
    try:
        op(shard(u, mesh)).sum().backward()
    finally:
        Flight.start = real  # type: ignore[method-assign]
    r = mesh.size()
    numbers = batch * length * D // r * (r - 1) // r
    assert sent == [8 * numbers * k for k in (order + 1, 1, 1, order + 1)], (sent, numbers)


def _memory(mesh: DeviceMesh) -> None:
    """What a process keeps for the backward pass, and the most that is alive at once."""
    # What plain PyTorch keeps of the filters' FFN does not shrink: every process makes its channels' taps of all lags.
    kinds = ["ExplicitFilter"] + ["HyenaFilter"] * ops.has_kernel("implicit_filter", torch.device("cpu"))
    for kind in kinds:
        ratios = _memory_ratios(mesh, {"filter": {"class": kind}})
        assert max(ratios) <= 1.2 / mesh.size(), (kind, ratios)
    ratios = _memory_ratios(mesh, {"num_heads": 4}, "Attention")  # no process holds a matrix of all pairs
    assert max(ratios) <= 1.2 / mesh.size(), ratios


def _memory_ratios(mesh: DeviceMesh, options: dict[str, Any], mixer: str = "HyenaOperator") -> list[float]:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": V, "l_max": 1024, "d_model": 64, "num_layers": 2}
    whole = CausalLM(CausalLMConfig(**sizes, mixer=mixer, mixer_options=options))
    spread = context_parallel(copy.deepcopy(whole), mesh, check=False)
    tokens = torch.randint(V, (2, 1024), generator=torch.Generator().manual_seed(0))
    bytes_of = []
    for model, mine in ((whole, tokens), (spread, shard(tokens, mesh))):
        model(mine).square().sum().backward()  # tables are there then
        model.zero_grad()
        with LiveBytes() as counted:
            loss = model(mine).square().sum()
            kept = counted.live
            loss.backward()
        bytes_of.append((kept, counted.peak))
    return [b / a for a, b in zip(*bytes_of, strict=True)]


def _disagreement(mesh: DeviceMesh) -> None:
    """Every process raises, and says which ranks differ."""
    last = mesh.get_local_rank() == mesh.size() - 1
    torch.manual_seed(1)
    op = context_parallel(HyenaOperator(D, 40), mesh)
    u = torch.randn(2, 5, D)
    expect(lambda: context_parallel(HyenaOperator(D, 41 if last else 40), mesh), f"models differ.*{mesh.size() - 1}")
    expect(lambda: op(u[:1] if last else u), f"batch size differs.*rank {mesh.size() - 1}: 1")
    expect(lambda: op(u, torch.ones(2, 5, dtype=torch.bool) if last else None), "a mask differs")
    bad = u.clone()
    if last:
        bad[1, 2, 3] = torch.nan
    expect(lambda: op(bad), f"not finite.*on rank {mesh.size() - 1} ")
    assert op(u).isfinite().all()
    expect(lambda: op(torch.randn(2, 30, D)), f"a row of {30 * mesh.size()} positions is longer")


def second_derivatives(mesh: DeviceMesh) -> None:
    """The derivative of a gradient along a direction, and of the next one: sums over processes, as gradients are."""
    torch.manual_seed(1)
    whole = HyenaOperator(D, 40, filter=S4, dtype=torch.float64)
    op = context_parallel(copy.deepcopy(whole), mesh)
    names = [name for name, _ in whole.named_parameters()]
    directions = [torch.randn_like(p) for p in whole.parameters()]
    found = []
    for module, u in ((whole, inputs()), (op, pieces(inputs(), mesh, uneven=True).contiguous())):
        leaves, value, orders = list(module.parameters()), module(u).pow(3).sum(), []
        for _ in range(3):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            orders.append([g.detach().clone() for g in grads])
            value = sum(((g * d).sum() for g, d in zip(grads, directions, strict=True)), value.new_zeros(()))
        # Of one weight alone, and of the same graph once more.
        orders.append([torch.autograd.grad(value, leaves[0])[0]])
        found.append(orders)
    for order, (want, got) in enumerate(zip(*found, strict=True), 1):
        for name, a, b in zip(names, want, got, strict=False):
            dist.all_reduce(b, group=mesh.get_group())
            close(b, a, f"derivative {order} by {name}", 1e-9)


def _refusals(mesh: DeviceMesh) -> None:
    expect(lambda: context_parallel(nn.Linear(2, 2), mesh), "has no hyena.mixers.Mixer")
    expect(lambda: context_parallel(CASES["S5"](), mesh), "S5 meet between its projections")
    few = mesh.size() - 1
    expect(lambda: context_parallel(HyenaOperator(few, 40), mesh), f"has {few} heads or channels to mix, fewer than")
    expect(lambda: context_parallel(HyenaOperator(D, 40), mesh, chunks=0), "chunks must be .* got 0")
    op = context_parallel(HyenaOperator(D, 40), mesh)
    expect(lambda: context_parallel(op, mesh), "spread over processes already")
    expect(lambda: op(torch.randn(1, 2, D), state=op.init_state(1)), "takes no state")
    expect(lambda: op(torch.randn(1, 2, D + 1)), f"expected .B, n, {D}.")
    expect(lambda: shard(torch.zeros(1, 1), mesh), "1 positions cannot be shared out")
    model = build("dna")
    model.check_can_decode(needs_logits=False)


def expect(run: Callable[[], Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        run()


def _generic_filter(mesh: DeviceMesh) -> None:
    """A filter of one's own, of which all taps are made."""

    class Own(nn.Module):
        def __init__(self, channels: int, l_max: int, num_filters: int, *, causal: bool, device=None, dtype=None):
            super().__init__()
            self.inner = HyenaFilter(channels, l_max, num_filters, causal=causal, device=device, dtype=dtype)

        def forward(self, length: int) -> Tensor:
            return self.inner(length).cos()

    same_as_one_process(lambda: HyenaOperator(D, 40, filter=Own, dtype=torch.float64), inputs(), mesh)


SPREAD = [name for name in CASES if name.split("-")[0] in ("Attention", "H3", "HyenaOperator", "LinearAttention")]
CHECKS: dict[str, Check] = {
    **{name: _mixer(name) for name in SPREAD},
    **{f"model-{name}": _model(name) for name in ("hyena", "attention", "dna")},
    "sizes": _sizes,
    "own filter": _generic_filter,
    "bytes": _bytes,
    "memory": _memory,
    "second derivatives": second_derivatives,
    "disagreement": _disagreement,
    "refusals": _refusals,
}


@in_group
def run_beside_one_that_stops(rank: int, processes: int, folder: str) -> None:
    """The last process ends before the call; the others say so, and do not wait."""
    mesh = init_device_mesh("cpu", (processes,), mesh_dim_names=("cp",))
    op = context_parallel(HyenaOperator(D, 40), mesh)
    dist.barrier()
    if rank < processes - 1:
        with pytest.raises(RuntimeError, match=f"failed on rank {rank} of {processes}: another process has stopped"):
            op(torch.randn(1, 3, D))


@in_group
def run(rank: int, processes: int, folder: str, names: list[str]) -> None:
    """One process of several: the checks in turn, and what failed into a file of its own."""
    failed = []
    try:
        mesh = init_device_mesh("cpu", (processes,), mesh_dim_names=("cp",))
        for name in names:
            try:
                (_fsdp if name == "fsdp" else CHECKS[name])(mesh)
            except Exception:
                failed.append(f"{name} on rank {rank}:\n{traceback.format_exc()}")
            dist.barrier()
    finally:
        (Path(folder) / f"failed-{rank}.txt").write_text("\n".join(failed))
