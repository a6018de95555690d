"""What a process of a tensor-parallel run does; imported by the processes that the tests start."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

from helpers.mixers import CASES, D
from helpers.models import L_MAX, V, build
from helpers.processes import in_group
from helpers.split import (
    LENGTH,
    MODELS,
    Check,
    Mesh,
    Runs,
    close,
    expect,
    gradients,
    inputs,
    mine,
    run_checks,
    same_as_one_process,
    tokens,
    whole_output,
)
from hyena import HyenaOperator
from hyena.distributed import (
    clip_grad_norm_,
    context_parallel,
    sum_gradients,
    tensor_parallel,
    tensor_parallel_plan,
)
from hyena.distributed.collectives import Processes
from hyena.distributed.splits import splits_of
from hyena.integrations import HyenaAttention
from hyena.models import CausalLM, CausalLMConfig

MASK = torch.arange(LENGTH) >= torch.tensor([[0], [9]])
PACKED = torch.tensor([0, 2, 13, LENGTH])


def _mixer(name: str) -> Check:
    def check(mesh: Mesh) -> None:
        def make() -> nn.Module:
            return CASES[name](dtype=torch.float64)

        if make().units < mesh["tp"].size():
            return
        same_as_one_process(make, inputs(), mesh)
        same_as_one_process(make, inputs(), mesh, mask=MASK)
        same_as_one_process(make, inputs(1), mesh, cu_seqlens=PACKED)
        if make().causal:
            _steps_alike(make().eval(), mesh)

    return check


@torch.no_grad()
def _steps_alike(whole: Any, mesh: Mesh) -> None:
    """Prefill in pieces and steps, and states that are a process's share."""
    model: Any = tensor_parallel(copy.deepcopy(whole), mesh["tp"])
    states = [m.init_state(2, LENGTH) for m in (whole, model)]
    assert whole.state_size(2, LENGTH).rows >= 1.9 * model.state_size(2, LENGTH).rows
    u = inputs()
    for piece in u.split([7, 1, 1, 5, 9], dim=1):
        ys = [m.prefill(piece, state)[0] for m, state in zip((whole, model), states, strict=True)]
        close(ys[1], ys[0], "outputs of steps", 1e-10)


def _model(name: str, **options: Any) -> Check:
    def check(mesh: Mesh) -> None:
        make, batch = MODELS[name], 4 if "dp" in mesh else 2
        same_as_one_process(make, tokens(batch), mesh, **options)
        same_as_one_process(make, tokens(batch), mesh, mask=MASK.repeat(batch // 2, 1), **options)
        if "dp" not in mesh:
            same_as_one_process(make, tokens(1), mesh, cu_seqlens=PACKED, **options)

    return check


def _generation(mesh: Mesh) -> None:
    """The same text, greedy and sampled, from states that are a process's share."""
    for name in ("hyena", "attention", "dna", "striped"):
        torch.manual_seed(0)
        whole: Any = MODELS[name]().eval()
        for options in ({}, {"sequence_parallel": True}):
            model: Any = tensor_parallel(copy.deepcopy(whole), mesh["tp"], **options)
            for settings in ({"temperature": 0}, {"seed": 3, "top_k": 5}):
                want, got = (m.generate([[1, 2, 3, 4, 5], [6, 7]], 12, **settings) for m in (whole, model))
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (name, got, want)


def _attention_drop_in(mesh: Mesh) -> None:
    """Inside somebody else's model, and by a plan."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    layer.self_attn = HyenaAttention(D, 2, batch_first=True, l_max=L_MAX, dtype=torch.float64)
    split = copy.deepcopy(layer)
    plan = tensor_parallel_plan(split, mesh["tp"].size())
    assert list(plan) == ["", "self_attn.operator"]
    parallelize_module(split, mesh["tp"], plan)
    assert split.self_attn.in_proj_weight.size(0) == 3 * D // mesh["tp"].size()
    ys = [m(inputs()) for m in (layer, split)]
    close(ys[1], ys[0], "outputs", 1e-10)
    for y in ys:
        y.square().sum().backward()
    found = gradients(split)
    for name, p in layer.named_parameters():
        close(found[name], p.grad, name, 1e-10)
    expect(lambda: split.self_attn(*[inputs()] * 3, need_weights=True), "holds a part of its channels")


def _sizes(mesh: Mesh) -> None:
    """Single precision, orders, groups of filters that are one, and a filter of one's own."""
    for order in (1, 2, 3):
        same_as_one_process(lambda n=order: HyenaOperator(D, 40, order=n, dtype=torch.float64), inputs(), mesh)
    same_as_one_process(lambda: HyenaOperator(D, 40), inputs(dtype=torch.float32), mesh, bound=1e-5)
    same_as_one_process(lambda: HyenaOperator(D, 40, filter_groups=1, dtype=torch.float64), inputs(), mesh)
    same_as_one_process(lambda: HyenaOperator(D, 40, inner_factor=2, dtype=torch.float64), inputs(), mesh)


def _bytes(mesh: Mesh) -> None:
    """As many bytes as the documentation says."""
    sent: list[float] = []
    r = mesh["tp"].size()

    def count(name: str, share: float) -> None:
        real = getattr(Processes, name)

        def counted(self: Processes, x: Tensor, *args: Any) -> Tensor:
            sent.append(share * x.numel() * x.element_size())
            return real(self, x, *args)

        setattr(Processes, name, counted)
        restore.append((name, real))

    batch, layers, d = 2, 2, 16
    length = 6 * r
    for spread_rows, mlp in itertools.product((False, True), ("gelu", "swiglu")):
        restore: list[tuple[str, Any]] = []
        torch.manual_seed(1)
        model = build("hyena", filter=partial(_explicit, taps=5), mlp=mlp)
        tensor_parallel(model, mesh["tp"], sequence_parallel=spread_rows, check=False)
        sent.clear()
        count("sum", 2 * (r - 1) / r)
        count("gather", r - 1)
        count("sum_of_mine", (r - 1) / r)
        try:
            y = model(tokens(batch, length))
            forward = sum(sent)
            y.sum().backward()
        finally:
            for name, real in restore:
                setattr(Processes, name, real)
        rows = 8 * batch * length * d * (r - 1) / r
        layer = 4 * rows  # a mixer and an MLP
        gathering = rows if spread_rows else 0
        assert forward == layers * layer + gathering, (forward, layers * layer)
        # The gradients of what is shared: norms, and the biases of what is summed, of which a gated MLP has none.
        biases = layers * d * (2 if mlp == "gelu" else 1)
        shared = 2 * 8 * ((2 * layers + 1) * 2 * d + biases) * (r - 1) / r if spread_rows else 0
        assert abs(sum(sent) - forward - (layers * layer + gathering + shared)) < 1e-6 * forward, (sent, shared)


def _explicit(*args: Any, **kwargs: Any) -> nn.Module:
    from hyena.filters import ExplicitFilter

    return ExplicitFilter(*args, **kwargs)


def _context_first(mesh: Mesh) -> None:
    """The two in the other order."""
    torch.manual_seed(1)
    whole = MODELS["tied"]()
    model = tensor_parallel(context_parallel(copy.deepcopy(whole), mesh["cp"]), mesh["tp"])
    want, got = whole(tokens()), model(mine(tokens(), mesh))
    close(whole_output(got, mesh), want.detach(), "outputs", 1e-10)
    want.square().sum().backward()
    got.square().sum().backward()
    sum_gradients(model, mesh["cp"])
    found = gradients(model)
    for name, p in whole.named_parameters():
        close(found[name], p.grad, name, 1e-10)


def _disagreement(mesh: Mesh) -> None:
    """Every process raises, and says which ranks differ."""
    tp, last = mesh["tp"], mesh["tp"].get_local_rank() == mesh["tp"].size() - 1
    rank = tp.size() - 1

    def make(l_max: int = 40) -> HyenaOperator:
        torch.manual_seed(1)
        return HyenaOperator(D, l_max)

    expect(lambda: tensor_parallel(make(41 if last else 40), tp), f"models differ.*{rank}")
    other = make()
    if last:
        other.conv.bias.data[0, 0] += 1
    expect(lambda: tensor_parallel(other, tp), rf"the values of conv.bias on rank {rank} are not those on rank 0")
    op = tensor_parallel(make(), tp)
    u = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    expect(lambda: op(u[:1] if last else u), f"batch size differs.*rank {rank}: 1")
    expect(lambda: op(u[:, :4] if last else u), f"positions differs.*rank {rank}: 4")
    expect(lambda: op(u + 1e-6 if last else u), rf"input \(checksum\) differs.*rank {rank}")
    expect(lambda: op(u, torch.ones(2, 5, dtype=torch.bool) if last else None), "number of tensors differs")
    if last:
        op.short.weight.data[0] = torch.nan
    expect(lambda: op(u), f"not finite: the part of a layer's output on rank {rank} ")


def _refusals(mesh: Mesh) -> None:
    tp, r = mesh["tp"], mesh["tp"].size()
    expect(lambda: tensor_parallel(nn.Linear(2, 2), tp), "has no hyena.mixers.Mixer to split")
    expect(lambda: tensor_parallel(CASES["S5"](), tp), "S5 meet between its projections")
    torch.manual_seed(0)
    expect(lambda: tensor_parallel(HyenaOperator(r - 1, 40), tp), f"has {r - 1} heads or channels to mix, fewer than")
    expect(lambda: tensor_parallel(HyenaOperator(2 * r + 1, 40), tp), f"has {2 * r + 1} .*not divide by the {r} proc")
    odd = CausalLM(CausalLMConfig(vocab_size=V, l_max=8, d_model=8, num_layers=1, d_inner=2 * r + 1))
    expect(lambda: tensor_parallel(odd, tp), rf"blocks.0.mlp has {2 * r + 1} inner channels, .* {r} processes")
    expect(lambda: tensor_parallel(CASES["HyenaOperator"](), tp, sequence_parallel=True), "is for a hyena.models.Dec")
    torch.manual_seed(0)
    op = tensor_parallel(HyenaOperator(D, 40), tp)
    expect(lambda: tensor_parallel(op, tp), "split over processes already")
    torch.manual_seed(0)
    sharded = fully_shard(HyenaOperator(D, 40), mesh=tp)
    expect(lambda: tensor_parallel(sharded, tp, check=False), "call tensor_parallel before adapters")
    torch.manual_seed(0)
    model = tensor_parallel(MODELS["tied"](), tp)
    with pytest.raises(IndexError, match="tokens must be 0 to 11, got 0 to 12"):
        model(torch.tensor([[0, 12]]))
    expect(lambda: clip_grad_norm_(model, 0.0), "must be positive, got 0.0")


SPREAD = [name for name in CASES if name.split("-")[0] in ("Attention", "H3", "HyenaOperator", "LinearAttention")]


def _second_derivatives(sequence_parallel: bool) -> Check:
    """The derivative of a gradient along a direction; every process has its part of both, and the same of the rest."""

    def check(mesh: Mesh) -> None:
        torch.manual_seed(1)
        whole = MODELS["tied"]()
        model = tensor_parallel(copy.deepcopy(whole), mesh["tp"], sequence_parallel=sequence_parallel)
        splits, found = splits_of(model), []
        directions = {name: torch.randn_like(p) for name, p in whole.named_parameters()}
        for module in (whole, model):
            names, leaves = zip(*module.named_parameters(), strict=True)
            grads = torch.autograd.grad(module(tokens()).pow(3).sum(), leaves, create_graph=True)
            apart = splits if module is model else {}
            along = [apart[n].take(directions[n]) if n in apart else directions[n] for n in names]
            value = sum(((g * d).sum() for g, d in zip(grads, along, strict=True)), grads[0].new_zeros(()))
            seconds = torch.autograd.grad(value, leaves, allow_unused=True)
            found.append({n: apart[n].gather(g) if n in apart else g for n, g in zip(names, seconds, strict=True)})
        for name, want in found[0].items():
            close(found[1][name], want, f"second derivative by {name}", 1e-9)

    return check


CHECKS: dict[str, Check] = {
    **{name: _mixer(name) for name in SPREAD},
    **{f"model-{name}": _model(name) for name in MODELS},
    **{f"spread-{name}": _model(name, sequence_parallel=True) for name in ("hyena", "tied", "recomputed")},
    "generation": _generation,
    "drop-in": _attention_drop_in,
    "sizes": _sizes,
    "second derivatives": _second_derivatives(sequence_parallel=False),
    "second derivatives, spread": _second_derivatives(sequence_parallel=True),
    "bytes": _bytes,
    "context first": _context_first,
    "disagreement": _disagreement,
    "refusals": _refusals,
}


@in_group
def run(rank: int, processes: int, folder: str, runs: Runs) -> None:
    """One process of several."""
    run_checks(rank, folder, runs, CHECKS)


@in_group
def run_beside_one_that_stops(rank: int, processes: int, folder: str) -> None:
    """The last process ends before the call; the others say so, and do not wait."""
    mesh = init_device_mesh("cpu", (processes,), mesh_dim_names=("tp",))
    torch.manual_seed(0)
    op = tensor_parallel(HyenaOperator(D, 40), mesh, check=False)
    dist.barrier()
    if rank < processes - 1:
        stopped = f"an all-reduce of a layer failed on rank {rank} of {processes}: another process has stopped"
        with pytest.raises(RuntimeError, match=stopped):
            op(torch.randn(1, 3, D))
