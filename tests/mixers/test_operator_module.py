"""The operator as an ordinary ``nn.Module``: copies, files, devices, dtypes, checkpointing, wrappers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from helpers.cases import rand
from helpers.operators import CONFIGS, D, build, expected
from hyena import HyenaOperator

CONFIG = pytest.mark.parametrize("config", CONFIGS)


def gradients(m: HyenaOperator, y: Tensor) -> list[Tensor]:
    used = [p for p in m.parameters() if p.numel() > 0]
    return list(torch.autograd.grad(y.square().sum(), used))


@CONFIG
def test_copies_and_pickles_compute_the_same(config: str) -> None:
    m, u = build(config), rand(2, 22, D).float()
    y = m(u)
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), copy.deepcopy(m.eval())):
        assert torch.equal(other(u), y)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        assert torch.equal(m(u), y)


@CONFIG
def test_state_dict_round_trip(config: str) -> None:
    m, other, u = build(config), build(config), rand(2, 22, D).float()
    file = io.BytesIO()
    torch.save(m.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(m(u), other(u))


@pytest.mark.parametrize("l_max", [22, 1000])
def test_weights_load_at_another_l_max(l_max: int) -> None:
    """Filters are functions of time over ``l_max``: the weights fit, and the filter is stretched."""
    m, other = build("default"), HyenaOperator(D, l_max)
    other.load_state_dict(m.state_dict())
    u = rand(2, 22, D)
    other = other.double()
    torch.testing.assert_close(other(u), expected(other, u), rtol=1e-11, atol=1e-11)


def test_settings_do_not_grow_the_state() -> None:
    size = {l_max: sum(t.numel() for t in HyenaOperator(D, l_max).state_dict().values()) for l_max in (96, 9600)}
    assert size[96] == size[9600]


@CONFIG
def test_meta_device_and_reset(config: str) -> None:
    m = build(config)
    empty = build(config, device="meta")
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    with torch.device("meta"):
        assert all(t.is_meta for t in build(config).state_dict().values())
    assert empty(torch.empty(2, 22, D, device="meta")).shape == (2, 22, D)
    filled = empty.to_empty(device="cpu")
    with torch.no_grad():
        for t in [*filled.parameters(), *filled.buffers()]:
            t.fill_(torch.nan)
    filled.reset_parameters()
    assert all(t.isfinite().all() for t in [*filled.parameters(), *filled.buffers()])
    assert filled(rand(2, 22, D).float()).isfinite().all()
    filled.load_state_dict(m.state_dict())
    torch.testing.assert_close(filled(rand(2, 22, D).float()), m(rand(2, 22, D).float()))


@CONFIG
def test_a_new_start_depends_on_the_seed_alone(config: str) -> None:
    m = build(config)
    torch.manual_seed(3)
    m.reset_parameters()
    first = copy.deepcopy(m.state_dict())
    m.reset_parameters()
    assert not torch.equal(first["in_proj.weight"], m.in_proj.weight)
    torch.manual_seed(3)
    m.reset_parameters()
    for name, t in m.state_dict().items():
        assert torch.equal(t, first[name]), name


@CONFIG
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_built_in_a_dtype(config: str, dtype: torch.dtype) -> None:
    m = build(config, dtype=dtype)
    # Filters keep float32 weights.
    for name, t in m.state_dict().items():
        assert t.dtype == (torch.float32 if ".filter." in name and dtype == torch.bfloat16 else dtype), name
    assert m(rand(2, 22, D).to(dtype)).dtype == dtype


@CONFIG
def test_moving_between_dtypes(config: str) -> None:
    m, u = build(config), rand(2, 22, D)
    y = m(u.float())
    torch.testing.assert_close(m.double()(u).float(), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(m.float()(u.float()), y, rtol=0, atol=0)
    assert m.bfloat16()(u.bfloat16()).dtype == torch.bfloat16
    assert m.eval()(u.bfloat16()).dtype == torch.bfloat16


@CONFIG
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(config: str, reentrant: bool) -> None:
    m, u = build(config), rand(2, 22, D).float().requires_grad_()
    want = gradients(m, m(u))
    for g, w in zip(gradients_of_checkpointed(m, u, use_reentrant=reentrant), want, strict=True):
        torch.testing.assert_close(g, w)


def gradients_of_checkpointed(m: HyenaOperator, u: Tensor, **settings: object) -> list[Tensor]:
    m.zero_grad()
    checkpoint(m, u, **settings).square().sum().backward()
    return [p.grad for p in m.parameters() if p.numel() > 0]


def test_selective_checkpointing_of_the_mixing_step() -> None:
    m, u = build("default"), rand(2, 22, D).float().requires_grad_()
    want = gradients(m, m(u))
    kept = [torch.ops.hyena.recurrence.default, torch.ops.hyena.filter_spectrum.default]
    got = gradients_of_checkpointed(
        m, u, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(kept)
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_dropout_and_checkpointing_agree() -> None:
    m, u = HyenaOperator(D, 96, dropout=0.5), rand(2, 22, D).float().requires_grad_()
    torch.manual_seed(1)
    want = gradients(m, m(u))
    torch.manual_seed(1)
    for g, w in zip(gradients_of_checkpointed(m, u, use_reentrant=False), want, strict=True):
        torch.testing.assert_close(g, w)


@CONFIG
def test_functional_call(config: str) -> None:
    m, u = build(config), rand(2, 22, D).float()
    weights = {name: torch.randn_like(t) * 0.1 for name, t in m.state_dict().items()}
    y = torch.func.functional_call(m, weights, (u,))
    m.load_state_dict(weights)
    torch.testing.assert_close(y, m(u))


@CONFIG
def test_no_grad_and_frozen_weights(config: str) -> None:
    m, u = build(config), rand(2, 22, D).float()
    want = m(u)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(m(u), want)
            torch.testing.assert_close(m.eval()(u), want)
            m.train()
    m.requires_grad_(False)
    assert not m(u).requires_grad
    y = m(u.requires_grad_())
    y.sum().backward()
    assert u.grad.isfinite().all()
    assert all(p.grad is None for p in m.parameters())


@CONFIG
def test_double_backward(config: str) -> None:
    """A gradient penalty: the gradient of a gradient's norm reaches the weights."""
    m, u = build(config).double(), rand(1, 6, D).requires_grad_()
    (g,) = torch.autograd.grad(m(u).square().sum(), u, create_graph=True)
    found = torch.autograd.grad(g.square().sum(), [p for p in m.parameters() if p.numel() > 0], allow_unused=True)
    (g,) = torch.autograd.grad(expected(m, u).square().sum(), u, create_graph=True)
    wanted = torch.autograd.grad(g.square().sum(), [p for p in m.parameters() if p.numel() > 0], allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_it_learns_to_look_back() -> None:
    """Inside a container and with a plain optimizer: copy the token of three positions ago."""
    model = torch.nn.Sequential(torch.nn.Embedding(4, 16), HyenaOperator(16, 32), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(120):
        x = torch.randint(4, (32, 32))
        loss = torch.nn.functional.cross_entropy(model(x)[:, 3:].transpose(1, 2), x[:, :-3])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_repr_says_what_it_is() -> None:
    text = repr(build("heads-two-sided-paper"))
    for part in ("d_model=8", "l_max=96", "order=2", "num_heads=2", "causal=False", "value_filter=True", "(filter):"):
        assert part in text
