"""Layers are called, not read: what users put on or in the place of a projection acts in forward, prefill and step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hyena import HyenaOperator

D, L_MAX = 8, 24


class Adapted(nn.Module):
    """A low-rank adapter around a layer, as PEFT's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OffloadedLinear(nn.Linear):
    """A subclass whose weight is elsewhere until it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kept, self.bias)


def adapted(op: HyenaOperator, name: str) -> None:
    setattr(op, name, Adapted(getattr(op, name)))


def pruned(op: HyenaOperator, name: str) -> None:
    prune.random_unstructured(getattr(op, name), "weight", amount=0.5)


def normed(op: HyenaOperator, name: str) -> None:
    parametrizations.spectral_norm(getattr(op, name))


def weight_normed(op: HyenaOperator, name: str) -> None:
    layer = parametrizations.weight_norm(getattr(op, name))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(1.5)


def hooked(op: HyenaOperator, name: str) -> None:
    getattr(op, name).register_forward_hook(lambda module, inputs, y: y + 1)


def hooked_before(op: HyenaOperator, name: str) -> None:
    getattr(op, name).register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def replaced(op: HyenaOperator, name: str) -> None:
    layer = getattr(op, name)
    before = layer.forward
    layer.forward = lambda x: before(x) * 3


def subclassed(op: HyenaOperator, name: str) -> None:
    old = getattr(op, name)
    new = Doubled(old.in_features, old.out_features, dtype=old.weight.dtype)
    new.load_state_dict(old.state_dict())
    setattr(op, name, new)


def offloaded(op: HyenaOperator, name: str) -> None:
    old = getattr(op, name)
    new = OffloadedLinear(old.in_features, old.out_features, dtype=old.weight.dtype)
    new.kept = old.weight.detach() * 1.5
    new.weight.data.fill_(torch.nan)
    setattr(op, name, new)


WAYS: list[Callable[[HyenaOperator, str], None]] = [
    adapted,
    pruned,
    normed,
    weight_normed,
    hooked,
    hooked_before,
    replaced,
    subclassed,
    offloaded,
]


def by_calling(op: HyenaOperator, u: Tensor) -> Tensor:
    """The operator with its projections called, and the mixing between them as it is."""
    plain = HyenaOperator(D, L_MAX, dtype=u.dtype).eval()
    plain.short, plain.conv = op.short, op.conv
    size = op.in_proj(torch.zeros(1, 1, D, dtype=u.dtype)).size(2)
    plain.in_proj, plain.out_proj = nn.Linear(D, size, dtype=u.dtype), nn.Linear(D, D, dtype=u.dtype)
    mixed: list[Tensor] = []
    plain.in_proj.register_forward_hook(lambda module, inputs, y: op.in_proj(inputs[0]))
    plain.out_proj.register_forward_hook(lambda module, inputs, y: mixed.append(inputs[0]))
    plain(u)
    return op.out_proj(mixed[0])


@pytest.mark.parametrize("where", ["in_proj", "out_proj"])
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_projections_are_called(way: Callable[[HyenaOperator, str], None], where: str) -> None:
    op = HyenaOperator(D, L_MAX, dtype=torch.float64).eval()
    u = torch.randn(2, 19, D, dtype=torch.float64)
    before = op(u)
    way(op.eval(), where)
    op.eval()
    y = op(u)
    assert (y - before).abs().max() > 1e-3
    torch.testing.assert_close(y, by_calling(op, u), rtol=0, atol=1e-11)
    state = op.init_state(2)
    out = [op.prefill(u[:, :13], state)[0], *(op.step(u[:, t], state)[0][:, None] for t in range(13, 19))]
    torch.testing.assert_close(torch.cat(out, dim=1), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("way", [adapted, pruned, normed, weight_normed], ids=lambda f: f.__name__)
def test_what_is_put_there_trains(way: Callable[[HyenaOperator, str], None]) -> None:
    op = HyenaOperator(D, L_MAX, dtype=torch.float64)
    for name in ("in_proj", "out_proj"):
        way(op, name)
    op(torch.randn(2, 19, D, dtype=torch.float64)).square().sum().backward()
    for name, p in op.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@pytest.mark.parametrize("part", ["short", "conv"])
def test_hooks_on_the_convolutions_run(part: str) -> None:
    op = HyenaOperator(D, L_MAX, dtype=torch.float64).eval()
    u, called = torch.randn(1, 9, D, dtype=torch.float64), []
    before = op(u)
    getattr(op, part).register_forward_hook(lambda module, inputs, y: called.append(part) or 2 * y)
    y = op(u)
    assert (y - before).abs().max() > 1e-3
    assert called == [part]
    state = op.init_state(1)
    out = [op.prefill(u[:, :5], state)[0], *(op.step(u[:, t], state)[0][:, None] for t in range(5, 9))]
    torch.testing.assert_close(torch.cat(out, dim=1), y, rtol=0, atol=1e-11)
    assert called == [part] * 6


def test_dynamic_quantisation_acts() -> None:
    op = HyenaOperator(D, L_MAX).eval()
    u = torch.randn(1, 9, D)
    with torch.no_grad():
        want = op(u)
        small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(op), {nn.Linear}, dtype=torch.qint8)
        y = small(u)
        assert type(small.in_proj) is not nn.Linear
        assert 0 < (y - want).abs().max() < 0.05 * want.abs().max()
        state = small.init_state(1)
        out = torch.cat([small.step(u[:, t], state)[0][:, None] for t in range(9)], dim=1)
        # The scale of a dynamic quantisation is that of its input, here one position's.
        assert (out - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize(
    ("weight", "bias"),
    [((3 * D, D - 1), 3 * D), ((3 * D, D), 1), ((3 * D, D), 3 * D + 1), ((3 * D - 1, D), 3 * D - 1)],
)
def test_weights_of_another_shape_do_what_they_do_in_a_linear_layer(weight: tuple[int, int], bias: int) -> None:
    op, layer, u = HyenaOperator(D, 512), nn.Linear(D, 3 * D), torch.randn(1, 300, D)
    for module in (op.in_proj, layer):
        torch.manual_seed(0)
        module.weight, module.bias = nn.Parameter(torch.randn(weight)), nn.Parameter(torch.randn(bias))
    try:
        z = layer(u)
    except RuntimeError:
        z = None
    if z is None or z.size(2) != 3 * D:
        with pytest.raises((RuntimeError, ValueError)):
            op(u)
        return
    plain = copy.deepcopy(op)
    plain.in_proj = nn.Linear(D, 3 * D)
    plain.in_proj.register_forward_hook(lambda module, inputs, y: z)
    torch.testing.assert_close(op(u), plain(u), rtol=1e-4, atol=1e-5)
