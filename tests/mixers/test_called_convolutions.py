"""Steps in one call stand in for calling the convolutions: whatever is done to these later shows in the next step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hyena import HyenaOperator, ops
from hyena.conv.long import Past
from hyena.conv.short import ShortConv
from hyena.filters import ExplicitFilter, ModalFilter
from hyena.mixers import HyenaState

D = 6
FILTERS = [partial(ExplicitFilter, taps=4), partial(ModalFilter, modes=3)]


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def new_weight(short: ShortConv) -> None:
    short.weight = nn.Parameter(2 * short.weight.detach())


def new_bias(short: ShortConv) -> None:
    short.bias = None


def bias_of_no_parameter(short: ShortConv) -> None:
    bias = 3 * short.bias.detach()
    del short.bias
    short.bias = bias


def written(short: ShortConv) -> None:
    with torch.no_grad():
        short.weight.mul_(2)


def written_past_its_version(short: ShortConv) -> None:
    short.weight.data.mul_(2)


def parametrised(short: ShortConv) -> None:
    parametrize.register_parametrization(short, "weight", Doubled())


def pruned(short: ShortConv) -> None:
    prune.l1_unstructured(short, "weight", amount=0.5)


def replaced(short: ShortConv) -> None:
    was = short.forward
    short.forward = lambda *a, **k: 2 * was(*a, **k)


def hooked(short: ShortConv) -> None:
    short.register_forward_hook(lambda module, inputs, y: 2 * y)


def hooked_before(short: ShortConv) -> None:
    short.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0], *inputs[1:]))


def in_half(short: ShortConv) -> None:
    short.bfloat16()


WAYS = [
    new_weight,
    new_bias,
    bias_of_no_parameter,
    written,
    written_past_its_version,
    parametrised,
    pruned,
    replaced,
    hooked,
    hooked_before,
    in_half,
]


def started(filter: Callable[..., nn.Module]) -> tuple[HyenaOperator, HyenaState]:
    """An operator, and a state in which steps in one call came before."""
    op = HyenaOperator(D, 20, filter=filter, dtype=torch.float64).eval()
    state = op.init_state(2)
    for _ in range(6):
        op.step(torch.randn(2, D, dtype=torch.float64), state)
    return op, state


def by_calling(op: HyenaOperator, u: Tensor, state: HyenaState) -> Tensor:
    """A step through every module."""
    post, pre, v = op.short(op.in_proj(u[:, None]), memory=state.short).split(D, dim=2)
    y = op.conv(v, 0, pre, post, past=Past(state.online, state.memory[0], state.position))
    return op.out_proj(y)[:, 0]


@pytest.mark.parametrize("filter", FILTERS, ids=["taps", "modes"])
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@torch.no_grad()
def test_the_next_step_is_what_calling_gives(
    way: Callable[[ShortConv], None], filter: Callable[..., nn.Module]
) -> None:
    op, state = started(filter)
    u, before = torch.randn(2, D, dtype=torch.float64), state.clone()
    unchanged = op.step(u, state.clone())[0]
    way(op.short)
    want = by_calling(op, u, before)
    assert (want - unchanged).abs().max() > 1e-6
    y = op.step(u, state)[0]
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.short, before.short, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.memory[0], before.memory[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("filter", FILTERS, ids=["taps", "modes"])
@pytest.mark.parametrize("part", ["short", "conv"])
@torch.no_grad()
def test_hooks_that_come_and_go(part: str, filter: Callable[..., nn.Module]) -> None:
    op, state = started(filter)
    called: list[str] = []

    def step() -> list[str]:
        called.clear()
        op.step(torch.randn(2, D, dtype=torch.float64), state)
        return list(called)

    hook = getattr(op, part).register_forward_hook(lambda module, inputs, y: called.append(part))
    assert step() == [part]
    hook.remove()
    assert step() == []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, y: called.append(type(module).__name__)
    )
    try:
        assert {"ShortConv", "LongConv"} <= set(step())
    finally:
        hook.remove()


@torch.no_grad()
def test_a_class_whose_forward_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    op, state = started(FILTERS[0])
    was = ShortConv.forward
    monkeypatch.setattr(ShortConv, "forward", lambda self, *a, **k: 2 * was(self, *a, **k))
    u, before = torch.randn(2, D, dtype=torch.float64), state.clone()
    torch.testing.assert_close(op.step(u, state)[0], by_calling(op, u, before), rtol=0, atol=1e-12)


@pytest.mark.parametrize("filter", FILTERS, ids=["taps", "modes"])
def test_a_plain_step_is_one_call(filter: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would show nothing."""
    op, state = started(filter)
    name = "gated_window_step_" if filter is FILTERS[0] else "gated_modal_step_"
    calls: list[str] = []
    own = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *a: calls.append(name) or own(*a))
    with torch.inference_mode():
        op.step(torch.randn(2, D, dtype=torch.float64), state)
    assert calls == [name]
