"""The examples of other systems around Hyena: all run and learn, and each is what its paper says."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import HyenaOperator
from hyena.models import CausalLM

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "compose"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "characters")

# Steps that a test takes.
STEPS = {"butterfly": 12, "equilibrium": 12, "ordered": 20, "retrieval": 40, "scaling": 30, "switch": 20}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module", params=NAMES)
def ran(request: pytest.FixtureRequest) -> tuple[str, dict]:
    sys.path.insert(0, str(FOLDER))
    try:
        return request.param, example(request.param).main(STEPS[request.param])
    finally:
        sys.path.remove(str(FOLDER))


def test_it_learns(ran: tuple[str, dict]) -> None:
    name, result = ran
    losses = result["losses"]
    assert len(losses) == STEPS[name]
    assert sum(losses[-5:]) / 5 < 0.9 * sum(losses[:3]) / 3
    if name == "retrieval":  # new questions are answered, by reading
        assert result["right"]["found"] > 2 * result["right"]["random"]


def test_language_models_decode(ran: tuple[str, dict]) -> None:
    """Steps give what the whole row gives, where the model is one of tokens in order."""
    _, result = ran
    model = result["model"]
    if not isinstance(model, CausalLM) or "distance" in result:
        return
    tokens = torch.randint(60, (2, 20))
    model.eval()
    with torch.no_grad():
        want, state, got = model(tokens), model.init_state(2), []
        for part in tokens.split([9, 1, 1, 9], dim=1):
            got.append(model.prefill(part, state)[0])
    torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=1e-4, atol=1e-4)
    model.train()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_switch_routes_each_position_to_one_expert(training: bool) -> None:
    switch = example("switch").SwitchMLP(6, 5, 3, capacity=0.9).double().train(training)
    x = double(2, 7, 6).requires_grad_()
    probe = double(2, 7, 6)
    y = switch(x)
    (y * probe).sum().backward()
    got = {name: p.grad.clone() for name, p in switch.named_parameters()} | {"x": x.grad.clone()}
    switch.zero_grad()
    x.grad = None
    # One position after the other; room for ceil(0.9 * 14 / 3) = 5 in training.
    room, rows, dropped = [5 if training else 14] * 3, [], 0
    for token in x.flatten(0, 1):
        p = (switch.router.weight @ token).float().softmax(0)
        e = int(p.argmax())
        if room[e] == 0:
            rows.append(torch.zeros_like(token))
            dropped += 1
            continue
        room[e] -= 1
        rows.append(p[e].double() * (F.gelu(token @ switch.up[e]) @ switch.down[e]))
    want = torch.stack(rows).view_as(x)
    torch.testing.assert_close(y, want)
    assert round(switch.dropped.item() * 14) == dropped
    (want * probe).sum().backward()
    for name, p in [*switch.named_parameters(), ("x", x)]:
        torch.testing.assert_close(got[name], p.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_switch_drops_positions_without_looking_ahead() -> None:
    switch = example("switch").SwitchMLP(6, 5, 3, capacity=0.5)
    x = torch.randn(1, 12, 6)
    other = torch.cat([x[:, :7], torch.randn(1, 5, 6)], dim=1)
    assert switch(x)[0].abs().sum(1).eq(0).any()
    torch.testing.assert_close(switch(x)[:, :7], switch(other)[:, :7])


def test_switch_balance_loss() -> None:
    switch = example("switch").SwitchMLP(4, 4, 4)
    x = torch.eye(4).repeat(1, 5, 1)
    with torch.no_grad():
        switch.router.weight.copy_(50 * torch.eye(4))
        switch(x)
        assert math.isclose(switch.balance.item(), 1, abs_tol=1e-4)  # each expert has a quarter
        switch.router.weight[0] += 100
        switch(x)
        assert math.isclose(switch.balance.item(), 4, abs_tol=1e-4)  # one has all
    assert switch.balance.requires_grad is False
    switch(torch.randn(1, 9, 4))
    switch.balance.backward()
    assert switch.router.weight.grad.abs().sum() > 0


def test_butterfly_is_its_matrix() -> None:
    layer = example("butterfly").PixelatedButterfly(32, 64, block=4, rank=3).double()
    nn.init.normal_(layer.bias)
    nn.init.constant_(layer.gate, 0.3)
    n = 8
    dense = torch.zeros(64, 32, dtype=torch.float64)
    for copy in range(2):
        for i in range(n):
            for k, j in enumerate((i, i ^ 1, i ^ 2, i ^ 4)):
                rows, columns = slice(32 * copy + 4 * i, 32 * copy + 4 * i + 4), slice(4 * j, 4 * j + 4)
                dense[rows, columns] = layer.blocks[copy, i, k].detach()
    assert (dense != 0).sum() == layer.blocks.numel() == 2 * n * 4 * 16
    x = double(2, 5, 32)
    g = layer.gate
    weight = g * dense + (1 - g) * layer.u @ layer.v
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    with pytest.raises(ValueError, match="got 24, 4, 24"):
        example("butterfly").PixelatedButterfly(24, 24, block=4)


def as_linear(layer: nn.Module, d_in: int) -> nn.Linear:
    """The ``nn.Linear`` that computes what a layer without nonlinearities does."""
    with torch.no_grad():
        bias = layer(torch.zeros(1, 1, d_in, dtype=torch.float64))[0, 0]
        linear = nn.Linear(d_in, bias.numel(), dtype=torch.float64)
        linear.weight.copy_((layer(torch.eye(d_in, dtype=torch.float64)[None])[0] - bias).T)
        linear.bias.copy_(bias)
    return linear


@pytest.mark.parametrize("kind", ["butterfly", "scaling"])
def test_projections_are_called_by_the_operator(kind: str) -> None:
    """With masks, packed rows and steps, an operator with a projection put in is the one with its dense matrix."""
    made = example(kind)
    sparse, dense = (HyenaOperator(16, 24, dtype=torch.float64).eval() for _ in range(2))
    if kind == "butterfly":
        sparse.in_proj, sparse.out_proj = (made.PixelatedButterfly(16, c, 4, 2).double() for c in (48, 16))
    else:
        sparse.in_proj, sparse.out_proj = (made.SparseProjection(16, 4, outputs).double() for outputs in (3, 1))
    dense.load_state_dict({k: t for k, t in sparse.state_dict().items() if "proj" not in k}, strict=False)
    dense.in_proj, dense.out_proj = as_linear(sparse.in_proj, 16), as_linear(sparse.out_proj, 16)
    x = double(2, 24, 16)
    keep = torch.arange(24) < torch.tensor([[24], [17]])
    torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse(x, mask=keep), dense(x, mask=keep))
    bounds = torch.tensor([0, 9, 24])
    torch.testing.assert_close(sparse(x[:1], cu_seqlens=bounds), dense(x[:1], cu_seqlens=bounds))
    state = sparse.init_state(2)
    first, state = sparse.prefill(x[:, :23], state)
    last, state = sparse.step(x[:, 23], state)
    torch.testing.assert_close(torch.cat([first, last[:, None]], dim=1), dense(x))


def test_sparse_ffn_reads_the_units_that_it_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn = example("scaling").SparseFFN(6, groups=4, units=3, low_rank=2).double()
    x = double(2, 5, 6)
    logits = ffn.controller[1](ffn.controller[0](x)).unflatten(2, (4, 3))
    units = torch.einsum("bld,gnd->blgn", x, ffn.up)
    hard = F.one_hot(logits.argmax(3), 3)
    want = torch.einsum("blgn,gnd->bld", F.relu(units * hard), ffn.down)
    torch.testing.assert_close(ffn.eval()(x), want)
    # In training all units, weighted; the gradient reaches the controller.
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(0.9))
    soft = torch.einsum("blgn,gnd->bld", F.relu(units * logits.softmax(3)), ffn.down)
    torch.testing.assert_close(ffn.train()(x), soft)
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(0.1))
    y = ffn(x)
    assert not torch.allclose(y, soft)
    y.sum().backward()
    assert ffn.controller[0].weight.grad.abs().sum() > 0


def test_multiplicative_layer_can_be_any_permutation() -> None:
    """Theorem 1 of the paper, with the convolution as the identity."""
    layer = example("scaling").SparseProjection(12, 3, 1).double()
    to = torch.randperm(12)
    with torch.no_grad():
        layer.scale.zero_()
        layer.mix.zero_()
        for i, o in enumerate(to.tolist()):
            layer.scale[o // 4, i] = 1
            layer.mix[i, o % 4] = 1
        layer.conv.weight.zero_()
        layer.conv.weight[..., 1] = torch.eye(4, dtype=torch.float64)
        layer.conv.bias.zero_()
    x = double(2, 5, 12)
    torch.testing.assert_close(layer(x)[..., to], x)


def test_anderson_finds_fixed_points() -> None:
    anderson = example("equilibrium").anderson
    a = double(30, 30)
    a *= 0.95 / torch.linalg.matrix_norm(a, 2)
    b = double(30)
    z, calls = anderson(lambda z: a @ z + b, torch.zeros_like(b), 1e-10, 200)
    torch.testing.assert_close(z, torch.linalg.solve(torch.eye(30, dtype=torch.float64) - a, b))
    assert calls < 100  # by repetition it would take 0.95^n = 1e-10, n = 450


def test_equilibrium_gradients_are_those_of_many_layers() -> None:
    deep = example("equilibrium").Equilibrium(8, 12, tolerance=1e-12, most=300).double()
    u = double(2, 12, 8).requires_grad_()
    probe = double(2, 12, 8)
    y = deep(u)
    torch.testing.assert_close(deep.f(y.detach(), u), y)
    got = torch.autograd.grad((y * probe).sum(), [u, *deep.parameters()])
    z = torch.zeros_like(u)
    for _ in range(120):
        z = deep.f(z, u)
    torch.testing.assert_close(y, z, rtol=1e-7, atol=1e-8)
    want = torch.autograd.grad((z * probe).sum(), [u, *deep.parameters()])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def test_equilibrium_keeps_one_call_whatever_the_depth() -> None:
    deep = example("equilibrium").Equilibrium(8, 12, tolerance=0.0)
    u, kept = torch.randn(2, 12, 8), {}
    for most in (3, 30):
        deep.most = most
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: seen.append(t.numel()) or t, lambda t: t):
            deep(u)
        kept[most] = sum(seen)
        assert deep.calls == most
    assert kept[3] == kept[30] > 0


def test_equilibrium_is_causal() -> None:
    deep = example("equilibrium").Equilibrium(8, 12, tolerance=1e-10, most=200).double()
    u = double(1, 12, 8)
    other = torch.cat([u[:, :7], double(1, 5, 8)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(deep(u)[:, :7], deep(other)[:, :7], rtol=1e-6, atol=1e-7)


def test_ordered_neurons_are_their_recurrence() -> None:
    made = example("ordered")
    cell = made.OrderedNeurons(8, 20, levels=4).double()
    u = double(2, 20, 8)
    keep = torch.rand(2, 20) < 0.8
    for mask in (None, keep):
        rows = []
        for b in range(2):
            c = torch.zeros(8, dtype=torch.float64)
            for t in range(20):
                f, i, o, new, forget, enter = cell.in_proj(u[b, t]).split([8, 8, 8, 8, 4, 4])
                forget = torch.stack([forget.softmax(0)[: k + 1].sum() for k in range(4)])
                enter = torch.stack([enter.softmax(0)[k + 1 :].sum() for k in range(4)])
                forget, enter = (x[:, None].expand(4, 2).flatten() for x in (forget, enter))
                omega = forget * enter
                if mask is None or mask[b, t]:
                    c = (f.sigmoid() * omega + forget - omega) * c
                    c = c + (i.sigmoid() * omega + enter - omega) * new.tanh()
                rows.append(cell.out_proj(o.sigmoid() * c.tanh()))
        want = torch.stack(rows).view(2, 20, 8)
        got = cell(u, mask=mask)
        shown = slice(None) if mask is None else mask
        torch.testing.assert_close(got[shown], want[shown])
    packed = cell(u[:1], cu_seqlens=torch.tensor([0, 6, 20]))
    torch.testing.assert_close(packed, torch.cat([cell(u[:1, :6]), cell(u[:1, 6:])], dim=1))
    with pytest.raises(ValueError, match=r"21 positions .* l_max=20"):
        cell(double(1, 21, 8))


def test_cumax_opens_along_the_levels() -> None:
    x = example("ordered").cumax(torch.randn(50, 6))
    assert (x.diff(dim=1) >= 0).all()
    torch.testing.assert_close(x[:, -1], torch.ones(50))


def test_retrieval_finds_the_passage_that_has_the_words() -> None:
    made = example("retrieval")
    assert len(made.INDEXED) == made.P
    assert all(said in made.TEXT for _, said in made.INDEXED)
    model = made.Atlas()
    at = torch.arange(0, 500, 10)
    passages, answers = model(at)
    assert passages.shape == (50, made.K)
    assert answers.shape == (50, made.K, made.S)
    torch.testing.assert_close(passages.exp().sum(1), torch.ones(50))
    torch.testing.assert_close(answers.exp().sum(2), torch.ones(50, made.K))
    assert (passages[:, 0] >= passages[:, 1]).all()  # best first
    # The reader reads the passages that it is given.
    own = at[:, None].expand(-1, made.K)
    assert not torch.allclose(model(at, own)[1], model(at, own.flip(0))[1])
