"""``functional.short_conv``: states, SiLU inside, and centred taps, against the definition."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from helpers import oracle
from helpers.cases import DTYPES, LAYOUTS, MASKS, Tier, compare, make_mask, offsets, rand, rows_of
from hyena import functional

SIZES = [5, 0, 1, 9, 2]  # of packed rows; some are shorter than the taps


def centred(z: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Lag ``k`` of an odd number of taps has tap ``taps // 2 - k``."""
    taps = weight.flip(1).T
    taps = taps if taps.size(0) % 2 else torch.cat([taps, torch.zeros_like(taps[:1])])  # lags -n … n - 1
    y = oracle.long_conv(oracle.keep(z.double(), mask), taps, causal=False)
    return oracle.keep(y if bias is None else y + bias, mask)


def inputs(batch: int, length: int, channels: int, taps: int, mask: str = "none") -> dict[str, Tensor | None]:
    return {
        "x": rand(batch, length, channels, seed=1),
        "weight": rand(channels, taps, seed=2),
        "bias": rand(channels, seed=3),
        "mask": make_mask(mask, batch, length),
    }


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
def test_same_is_that_of_conv1d(taps: int) -> None:
    x, weight, bias = rand(2, 11, 4), rand(4, taps, seed=1), rand(4, seed=2)
    want = F.conv1d(x.mT, weight[:, None], bias, padding="same", groups=4).mT
    torch.testing.assert_close(functional.short_conv(x, weight, bias, padding="same"), want)


@given(data=st.data())
def test_same(tier: Tier, data: st.DataObject) -> None:
    dtype, taps = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 6))
    x = inputs(2, data.draw(st.integers(1, 20)), 3, taps, data.draw(st.sampled_from(MASKS)))
    layouts = {"x": data.draw(st.sampled_from(LAYOUTS[:-1]))}

    def want(x: Tensor, **rest: Tensor) -> Tensor:
        return centred(x, **rest)

    dy = rand(2, x["x"].size(1), 3, seed=4)
    compare(partial(functional.short_conv, padding="same"), want, x, dy, tier, dtype, layouts)


def test_same_of_packed_rows(tier: Tier) -> None:
    x = inputs(1, sum(SIZES), 3, 4, "random")
    x["cu_seqlens"] = offsets(SIZES)

    def want(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
        return oracle.by_row(lambda z, m: centred(z, weight, bias, m), rows_of(cu_seqlens), x, mask)

    compare(
        partial(functional.short_conv, padding="same"), want, x, rand(1, sum(SIZES), 3, seed=4), tier, torch.float64
    )


@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_before_rounding(tier: Tier, dtype: torch.dtype, padding: str) -> None:
    x = inputs(2, 40, 3, 3)
    on = {n: t.to(tier.device, dtype).requires_grad_() for n, t in x.items() if t is not None}
    with tier():
        y = functional.short_conv(**on, activation="silu", padding=padding)
        y.backward(torch.ones_like(y))
    wide = {n: t.requires_grad_() for n, t in x.items() if t is not None}
    conv = oracle.short_conv if padding == "causal" else centred
    want = F.silu(conv(*wide.values()))
    want.backward(torch.ones_like(want))
    # Rounded once: half an eps of the entry itself, and not of what was rounded before.
    limit = max(torch.finfo(dtype).eps, 1e-6 if dtype != torch.float64 else 1e-12)
    assert ((y.double().cpu() - want).abs() <= limit * (want.abs() + 1e-3)).all()
    for name, t in on.items():
        torch.testing.assert_close(t.grad.double().cpu(), wide[name].grad, rtol=2 * limit, atol=4 * limit)


def stepped(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """By definition: the state's inputs come before those of ``x``."""
    count = state.size(1)
    whole = torch.cat([state, oracle.keep(x, mask)], dim=1)
    y = oracle.short_conv(whole, weight, bias)[:, count:]
    return oracle.keep(y, mask), whole[:, whole.size(1) - count :]


@pytest.mark.parametrize("length", [1, 2, 3, 20])
@pytest.mark.parametrize("mask", ["none", "random"])
def test_states(tier: Tier, length: int, mask: str) -> None:
    x = inputs(2, length, 3, 4, mask)
    state = rand(2, 3, 3, seed=5)
    on = {n: None if t is None else t.to(tier.device) for n, t in x.items()}
    leaves = [on["x"].requires_grad_(), on["weight"].requires_grad_(), state.to(tier.device).requires_grad_()]
    with tier():
        y, last = functional.short_conv(**on, initial_state=leaves[2], return_final_state=True)
        found = torch.autograd.grad(y.square().sum() + last.pow(3).sum(), leaves)
    wide = [x["x"].detach().requires_grad_(), x["weight"].detach().requires_grad_(), state.requires_grad_()]
    want, end = stepped(wide[0], wide[1], x["bias"], wide[2], x["mask"])
    torch.testing.assert_close(y.cpu(), want)
    torch.testing.assert_close(last.cpu(), end)
    for g, w in zip(found, torch.autograd.grad(want.square().sum() + end.pow(3).sum(), wide), strict=True):
        torch.testing.assert_close(g.cpu(), w)


def test_chunks_are_the_whole(tier: Tier) -> None:
    """A row in pieces, each handed the state of the one before; pieces shorter than the taps too."""
    x, weight, bias = rand(2, 20, 3), rand(3, 4, seed=1), rand(3, seed=2)
    state, pieces = None, []
    with tier():
        for piece in x.to(tier.device).split([1, 1, 7, 2, 9], dim=1):
            y, state = functional.short_conv(
                piece, weight.to(tier.device), bias.to(tier.device), initial_state=state, return_final_state=True
            )
            pieces.append(y.cpu())
    torch.testing.assert_close(torch.cat(pieces, dim=1), oracle.short_conv(x, weight, bias))
    assert torch.equal(state.cpu(), x[:, -3:])


@pytest.mark.parametrize("mask", ["none", "random"])
@pytest.mark.parametrize("given_state", [True, False])
def test_states_of_packed_rows(tier: Tier, given_state: bool, mask: str) -> None:
    x, at = inputs(1, sum(SIZES), 3, 4, mask), offsets(SIZES)
    states = rand(len(SIZES), 3, 3, seed=5) if given_state else torch.zeros(len(SIZES), 3, 3, dtype=torch.float64)
    on = {n: None if t is None else t.to(tier.device) for n, t in x.items()}
    with tier():
        y, last = functional.short_conv(
            **on,
            cu_seqlens=at.to(tier.device),
            initial_state=states.to(tier.device) if given_state else None,
            return_final_state=True,
        )
    for i, (a, b) in enumerate(rows_of(at)):
        part = None if x["mask"] is None else x["mask"][:, a:b]
        want, end = stepped(x["x"][:, a:b], x["weight"], x["bias"], states[i : i + 1], part)
        torch.testing.assert_close(y[:, a:b].cpu(), want)
        torch.testing.assert_close(last[i].cpu(), end[0])


def test_one_tap_has_an_empty_state() -> None:
    x = rand(2, 5, 3)
    y, state = functional.short_conv(x, rand(3, 1), return_final_state=True)
    assert state.shape == (2, 0, 3)
    again, _ = functional.short_conv(x, rand(3, 1), initial_state=state, return_final_state=True)
    assert torch.equal(y, again)


def test_states_of_rows_without_positions() -> None:
    """They are what they were; packed and not."""
    state = rand(2, 3, 5)
    for x, offsets_of in ((rand(2, 0, 5), None), (rand(1, 0, 5), torch.tensor([0, 0, 0]))):
        for before in (None, state):
            y, after = functional.short_conv(
                x, rand(5, 4), initial_state=before, return_final_state=True, cu_seqlens=offsets_of
            )
            assert y.shape == x.shape
            assert torch.equal(after, torch.zeros_like(state) if before is None else state)


def test_it_compiles() -> None:
    x, weight, state = rand(2, 9, 3).float(), rand(3, 4, seed=1).float(), rand(2, 3, 3, seed=2).float()

    def fn(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return functional.short_conv(x, weight, activation="silu", initial_state=state, return_final_state=True)

    torch._dynamo.reset()
    got = torch.compile(fn, fullgraph=True, backend="aot_eager")(x, state)
    torch._dynamo.reset()
    for g, w in zip(got, fn(x, state), strict=True):
        torch.testing.assert_close(g, w)


def test_errors_name_the_numbers() -> None:
    x, weight, state = torch.zeros(2, 7, 4), torch.zeros(4, 3), torch.zeros(2, 2, 4)
    with pytest.raises(ValueError, match=r"activation must be 'silu', 'swish' or None, got 'gelu'"):
        functional.short_conv(x, weight, activation="gelu")
    with pytest.raises(ValueError, match=r"padding must be 'causal' or 'same', got 'valid'"):
        functional.short_conv(x, weight, padding="valid")
    with pytest.raises(ValueError, match=r"padding='same' sees later inputs"):
        functional.short_conv(x, weight, padding="same", initial_state=state)
    with pytest.raises(ValueError, match=r"padding='same' sees later inputs"):
        functional.short_conv(x, weight, padding="same", return_final_state=True)
    with pytest.raises(ValueError, match=r"initial_state must be torch.float32 of shape \(2, 2, 4\).*\(2, 4, 2\)"):
        functional.short_conv(x, weight, initial_state=state.mT)
    with pytest.raises(ValueError, match=r"initial_state must be .* of shape \(3, 2, 4\).*got .* \(2, 2, 4\)"):
        functional.short_conv(x[:1], weight, cu_seqlens=offsets([3, 2, 2]), initial_state=state)
    with pytest.raises(ValueError, match=r"initial_state must be torch.float32 .* got torch.float64"):
        functional.short_conv(x, weight, initial_state=state.double())
