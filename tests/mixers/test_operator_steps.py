"""Steps and chunks of an operator against its parallel form: exact in any mixture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.operators import CONFIGS, L_MAX, D, build, expected
from hyena import HyenaOperator
from hyena.checkpoints.safari.blocks import SafariOperator
from hyena.conv import LongConv, Tiles
from hyena.filters import ModalFilter
from hyena.integrations.attention import HyenaAttention
from hyena.mixers import HyenaState

CAUSAL = [name for name, c in CONFIGS.items() if c.get("causal", True) and c.get("num_blocks", 1) == 1]
# The largest deviation: of transforms and of sums in another order, in units of outputs that are about 1.
LIMIT = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 5e-2}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that short rows meet tiles of many sizes.
    monkeypatch.setattr(LongConv, "block", 4)


def chunks(total: int, sizes: list[int]) -> Iterator[slice]:
    """``total`` positions in chunks of the sizes given, again and again."""
    at = i = 0
    while at < total:
        n = min(sizes[i % len(sizes)], total - at)
        yield slice(at, at + n)
        at, i = at + n, i + 1


def go_on(op: HyenaOperator, u: Tensor, state: HyenaState, sizes: list[int], mask: Tensor | None = None) -> Tensor:
    """``u`` in chunks; chunks of one position as steps."""
    out = []
    for part in chunks(u.size(1), sizes):
        at = part.start
        if part.stop - at == 1:
            y, same = op.step(u[:, at], state, None if mask is None else mask[:, at])
            y = y[:, None]
        else:
            y, same = op.prefill(u[:, part], state, None if mask is None else mask[:, part])
        assert same is state
        out.append(y)
    return torch.cat(out, dim=1)


def close(got: Tensor, want: Tensor) -> bool:
    return (got.double() - want.double()).abs().max().item() <= LIMIT[got.dtype]


SIZES = st.lists(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 8, 13, 16, 31, 64]), min_size=1, max_size=6)


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=20)
@given(data=st.data())
def test_any_mixture_of_steps_and_chunks_is_the_parallel_form(name: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    op = build(name, dtype=torch.float64)
    op = op.train(data.draw(st.booleans()))
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, L_MAX))
    u = torch.randn(batch, length, D, dtype=torch.float64)
    mask = torch.rand(batch, length) > 0.3 if data.draw(st.booleans()) else None
    state = op.init_state(batch, data.draw(st.integers(length, L_MAX)))
    got = go_on(op, u, state, data.draw(SIZES), mask)
    assert state.position == length
    assert close(got, op(u, mask))
    assert close(got, expected(op, u, mask))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_odd_widths_and_lengths(dtype: torch.dtype) -> None:
    """Kept spectra of tiles are complex numbers, wherever the taps beside them end."""
    op = HyenaOperator(3, 101, dtype=dtype).eval()
    u = torch.randn(2, 101, 3, dtype=dtype)
    assert close(go_on(op, u, op.init_state(2), [1, 7]), op(u))


@settings(max_examples=60)
@given(data=st.data())
def test_rows_reordered_copied_and_saved_on_the_way(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    op = build(data.draw(st.sampled_from(["order-3", "heads", "short-1"])), dtype=torch.float64).eval()
    batch, sizes = 3, data.draw(SIZES)
    cut, length = data.draw(st.integers(1, 60)), data.draw(st.integers(61, L_MAX))
    u = torch.randn(batch, length, D, dtype=torch.float64)
    state = op.init_state(batch)
    go_on(op, u[:, :cut], state, sizes)

    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=5)))
    beams, kept = state.reorder(rows), state.clone()
    later = torch.randn(len(rows), length - cut, D, dtype=torch.float64)
    want = op(torch.cat([u[rows, :cut], later], dim=1))[:, cut:]
    assert close(go_on(op, later, beams, sizes), want)

    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    go_on(op, torch.randn(batch, length - cut, D, dtype=torch.float64), state, sizes)  # spoils it
    file.seek(0)
    state.load_state_dict(torch.load(file, weights_only=True))
    want = op(u)[:, cut:]
    assert close(go_on(op, u[:, cut:], state, sizes), want)
    assert close(go_on(op, u[:, cut:], kept, sizes), want)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), sizes=SIZES, more=st.integers(1, 30))
def test_prompts_of_different_length_go_on_as_if_alone(lengths: list[int], sizes: list[int], more: int) -> None:
    op = build("order-3", dtype=torch.float64).eval()
    longest = max(lengths)
    rows = [torch.randn(n + more, D, dtype=torch.float64) for n in lengths]
    u = torch.stack([torch.cat([torch.randn(longest - n, D, dtype=torch.float64), r]) for r, n in zip(rows, lengths)])
    mask = torch.arange(longest + more) >= longest - torch.tensor(lengths)[:, None]
    state = op.init_state(len(lengths), longest + more)
    got = go_on(op, u[:, :longest], state, sizes, mask[:, :longest])
    then = go_on(op, u[:, longest:], state, [1])
    for b, (row, n) in enumerate(zip(rows, lengths)):
        want = op(row[None])[0]
        assert close(got[b, longest - n :], want[:n])
        assert close(then[b], want[n:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CAUSAL)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    op = build(name).to(dtype).eval()
    u = torch.randn(2, 77, D).to(dtype)
    for sizes in ([1], [77], [3, 1, 40]):
        got = go_on(op, u, op.init_state(2), sizes)
        assert got.dtype == dtype
        assert close(got, op(u))


def test_autocast() -> None:
    op, u = build("default").eval(), torch.randn(1, 20, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = go_on(op, u, op.init_state(1), [7, 1]), op(u)
    assert got.dtype == want.dtype == torch.bfloat16
    assert close(got, want)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_in_hyenas_shape(batch_first: bool) -> None:
    m = HyenaAttention(D, 2, l_max=L_MAX, causal=True, batch_first=batch_first, dtype=torch.float64).eval()
    u = torch.randn(3, 40, D, dtype=torch.float64)
    padding = torch.arange(40) < torch.tensor([0, 5, 17])[:, None]
    x = u if batch_first else u.transpose(0, 1)
    want = m(x, x, x, key_padding_mask=padding)[0]
    want = want if batch_first else want.transpose(0, 1)
    first = u[:, :30] if batch_first else u[:, :30].transpose(0, 1)
    y, state = m.prefill(first, m.init_state(3), padding[:, :30])
    out = [y if batch_first else y.transpose(0, 1)]
    for t in range(30, 40):
        y, state = m.step(u[:, t], state)
        out.append(y[:, None])
    assert close(torch.cat(out, dim=1), want)
    with pytest.raises(ValueError, match="causal=False"):
        HyenaAttention(D, 2, l_max=L_MAX).init_state(1)


def test_the_default_block_over_a_longer_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    op = HyenaOperator(4, 700, order=3, dtype=torch.float64).eval()
    u = torch.randn(2, 700, 4, dtype=torch.float64)
    for sizes in ([1], [700], [257, 1, 1, 33], [64]):
        assert close(go_on(op, u, op.init_state(2), sizes), op(u))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("max_length", [1, 3, 4, 5, 33, L_MAX])
def test_size_is_known_beforehand(name: str, max_length: int) -> None:
    op = build(name)
    state = op.init_state(3, max_length)
    rows = [state.short, *state.memory]
    size = op.state_size(3, max_length)
    assert size.rows == sum(t.numel() * t.element_size() for t in rows)
    f = state.online
    shared = (f.taps, *f.near, *f.bias, *f.tiles) if isinstance(f, Tiles) else f.tensors()
    assert size.shared == sum(t.numel() * t.element_size() for t in shared)


@pytest.mark.parametrize("name", ["order-3", "groups", "heads", "head-mixing", "order-4-paper"])
def test_modal_filters_step_as_they_convolve(name: str) -> None:
    exact = build(name)
    filters = ModalFilter(exact.conv.filter_channels, L_MAX, exact.conv.num_filters, modes=3, dtype=torch.float64)
    op = build(name, filter=filters, dtype=torch.float64).eval()
    for p in filters.parameters():
        nn.init.normal_(p)
    u = torch.randn(2, L_MAX, D, dtype=torch.float64)
    mask = torch.rand(2, L_MAX) > 0.3
    for sizes in ([1], [L_MAX], [31, 1, 1, 7]):
        state = op.init_state(2)
        assert close(go_on(op, u, state, sizes, mask), op(u, mask))
    size = op.state_size(2)
    assert size.rows == sum(t.numel() * t.element_size() for t in state.rows().values())
    f = state.online
    shared = (*f.pole, *f.residue, *f.bias, *f.first, *f.powers, *f.spectra)
    assert size.shared == sum(t.numel() * t.element_size() for t in shared)
    assert op.state_size(2, 40).rows == size.rows


def test_nothing_is_allocated_for_the_state_on_the_way() -> None:
    op = build("order-3").eval()
    state = op.init_state(2)
    before = [t.data_ptr() for t in (state.short, *state.memory)]
    go_on(op, torch.randn(2, L_MAX, D), state, [5, 1])
    assert before == [t.data_ptr() for t in (state.short, *state.memory)]


class Largest(TorchDispatchMode):
    """The most bytes of a result that is no view of the tensors given."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known, self.bytes = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out


def test_a_step_needs_no_memory_in_proportion_to_the_context() -> None:
    most = []
    for length in (64, 1024):
        op = HyenaOperator(D, length).eval()
        state = op.init_state(2)
        with torch.no_grad():
            op.prefill(torch.randn(2, length // 2 - 1, D), state)
            spectra = [t[0] for t in state.online.tiles]
            with Largest([*op.parameters(), *state.memory, state.short, *state.online.near, *spectra]) as largest:
                op.step(torch.randn(2, D), state)  # the dearest one
        most.append(largest.bytes)
    assert most[0] == most[1]


def test_filters_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, taps = [], LongConv._taps
    monkeypatch.setattr(LongConv, "_taps", lambda conv, length: calls.append(length) or taps(conv, length))
    op = HyenaOperator(D, L_MAX).train()
    state = op.init_state(2)
    assert calls == [L_MAX]
    go_on(op, torch.randn(2, L_MAX, D), state, [1, 9])
    assert calls == [L_MAX]
    op.eval()
    for _ in range(3):
        op.init_state(1)
    assert calls == [L_MAX] * 2


def test_a_state_keeps_its_filters_when_weights_change() -> None:
    op = build("default", dtype=torch.float64).eval()
    u = torch.randn(1, 30, D, dtype=torch.float64)
    want, state = op(u), op.init_state(1)
    y = go_on(op, u[:, :10], state, [1])
    with torch.no_grad():
        for p in op.conv.filter.parameters():
            p.mul_(3.0)
    assert close(torch.cat([y, go_on(op, u[:, 10:], state, [1])], dim=1), want)
    fresh = op.init_state(1)
    assert close(go_on(op, u, fresh, [4]), op(u))


def test_inference_mode_and_out_of_it() -> None:
    op, u = build("order-3").eval(), torch.randn(1, 40, D)
    with torch.inference_mode():
        state = op.init_state(1)
        first = go_on(op, u[:, :20], state, [1, 6])
    assert close(torch.cat([first, go_on(op, u[:, 20:], state, [1, 6])], dim=1), op(u))


def test_states_carry_no_graph() -> None:
    op, u = build("default"), torch.randn(1, 20, D, requires_grad=True)
    state = op.init_state(1)
    y, state = op.prefill(u, state)
    assert not y.requires_grad
    assert not any(t.requires_grad for t in (state.short, *state.memory))
    assert state.detach().short.data_ptr() == state.short.data_ptr()


@pytest.mark.parametrize("distilled", [False, True])
def test_to_a_device(device: str, distilled: bool) -> None:
    op, u = build("order-3", dtype=torch.float64).eval(), torch.randn(2, 50, D, dtype=torch.float64)
    if distilled:
        op.conv.filter = ModalFilter(D, L_MAX, 2, modes=3, dtype=torch.float64)
        nn.init.normal_(op.conv.filter.residue)
    want, state = op(u), op.init_state(2)
    first = go_on(op, u[:, :21], state, [5])
    op, state = op.to(device), state.to(device)
    assert {t.device.type for t in state.to("meta").rows().values()} == {"meta"}
    then = go_on(op, u[:, 21:].to(device), state, [1, 7])
    assert close(torch.cat([first, then.cpu()], dim=1), want)


@pytest.mark.parametrize("n", [1, 3])
def test_too_long(n: int) -> None:
    op = build("default")
    state = op.init_state(1, 10)
    op.prefill(torch.randn(1, 10, D), state)
    with pytest.raises(ValueError, match=rf"10 positions and {n} more .* made for 10 .*l_max={L_MAX}"):
        op.prefill(torch.randn(1, n, D), state)
    assert state.position == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"causal": False}, "causal=False"),
        ({"num_blocks": 2}, "num_blocks=2"),
    ],
)
def test_operators_that_cannot_be_stepped(config: dict[str, Any], message: str) -> None:
    op = SafariOperator(D, L_MAX, **config)
    with pytest.raises(ValueError, match=message):
        op.init_state(1)
    with pytest.raises(ValueError, match=message):
        op.state_size(1)


def test_filters_that_depend_on_the_length_cannot_be_stepped() -> None:
    op = build("default")
    op.conv.filter.depends_on_length = True
    with pytest.raises(ValueError, match="depends_on_length"):
        op.init_state(1)


def test_wrong_arguments() -> None:
    op = build("default")
    for batch, length in [(0, 4), (1, 0), (1, L_MAX + 1)]:
        with pytest.raises(ValueError, match=str(length if batch else batch)):
            op.init_state(batch, length)
    state = op.init_state(2)
    with pytest.raises(ValueError, match=r"\(2, n, 8\).*\(3, 4, 8\)"):
        op.prefill(torch.randn(3, 4, D), state)
    with pytest.raises(ValueError, match=r"\(2, 1, 8\)"):
        op.step(torch.randn(2, 1, D), state)
    with pytest.raises(ValueError, match="bool"):
        op.prefill(torch.randn(2, 4, D), state, torch.ones(2, 4))
    with pytest.raises(ValueError, match="same module, batch"):
        state.load_state_dict(op.init_state(1).state_dict())
    with pytest.raises(ValueError, match="eval"):
        HyenaOperator(D, L_MAX, dropout=0.1).step(torch.randn(1, D), op.init_state(1))
