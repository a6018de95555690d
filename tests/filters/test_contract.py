"""What every filter owes, run over everything that ``hyena.filters`` exports."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import Tensor

from helpers.filters import CASES, CHANNELS, ENDING, FILTERS, L_MAX, SETTINGS, build, exported
from hyena import HyenaOperator
from hyena.filters import Filter
from hyena.filters.narrow import narrow

FILTER = pytest.mark.parametrize(
    ("name", "causal"), SETTINGS, ids=lambda x: x if isinstance(x, str) else ("two-sided", "causal")[x]
)
LENGTHS = (1, 2, 7, 13, L_MAX)


def padded(h: Filter, length: int) -> Tensor:
    """All taps of a length, those beyond the support as zeros."""
    taps = h(length)
    missing = length - (taps.size(1) if h.causal else (taps.size(1) + 1) // 2)
    return torch.nn.functional.pad(taps, (0, 0, 0 if h.causal else missing, missing))


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def test_every_exported_filter_has_a_case() -> None:
    assert exported() <= {type(build(name)) for name in CASES}


@pytest.mark.parametrize("kind", sorted(exported(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_constructors_begin_alike(kind: type[Filter]) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters)[:3] == ["channels", "l_max", "num_filters"]
    assert parameters["num_filters"].default == 1
    keywords = {p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {"causal", "device", "dtype"} <= keywords == set(list(parameters)[3:])
    assert parameters["causal"].default is True
    for sizes in ((0, 8), (4, 0), (4, 8, 0)):
        with pytest.raises(ValueError, match=", ".join(str(n) for n in sizes)):
            kind(*sizes)
    for sizes in ((4.0, 8), (4, 8.0), (4, "8"), (4, 8, True)):
        with pytest.raises(TypeError, match="must be an int"):
            kind(*sizes)
    with pytest.raises(TypeError, match="causal must be True or False, got 'yes'"):
        kind(4, 8, causal="yes")
    with pytest.raises(TypeError, match="nonsense"):
        kind(4, 8, nonsense=1)


@FILTER
def test_shapes(name: str, causal: bool) -> None:
    h = build(name, causal)
    for length in LENGTHS:
        n = length if h.support is None else min(length, h.support)
        assert h(length).shape == h.taps_shape(length) == (FILTERS, n if causal else 2 * n - 1, CHANNELS)
    assert (h.channels, h.l_max, h.num_filters, h.causal) == (CHANNELS, L_MAX, FILTERS, causal)
    with pytest.raises(ValueError, match=rf"{L_MAX + 1} taps .* l_max={L_MAX}"):
        h(L_MAX + 1)
    with pytest.raises(ValueError, match="got a length of 0"):
        h(0)


@FILTER
def test_a_shorter_filter_is_part_of_a_longer(name: str, causal: bool) -> None:
    h = build(name, causal, dtype=torch.float64)
    if h.depends_on_length:
        return
    whole = padded(h, L_MAX)
    for length in LENGTHS:
        part = whole[:, :length] if causal else whole[:, L_MAX - length : L_MAX + length - 1]
        torch.testing.assert_close(padded(h, length), part)


@FILTER
def test_the_support(name: str, causal: bool) -> None:
    """A filter without one has taps up to its end; what one has is part of nothing else than its taps."""
    h = build(name, causal, dtype=torch.float64)
    assert h.support is None or 1 <= h.support <= L_MAX
    last = (h.support or L_MAX) - 1
    taps = padded(h, L_MAX)
    assert (taps[:, last if causal else L_MAX - 1 + last] != 0).any()


@FILTER
def test_some_channels_alone(name: str, causal: bool) -> None:
    """Their taps, modes and gradients, from the whole filter's weights."""
    whole = build(name, causal, dtype=torch.float64)
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.1 * rand(*p.shape))
    twin, channels = copy.deepcopy(whole), range(1, 3)
    part = narrow(twin, channels, CHANNELS)
    want, got = whole(13)[..., 1:3], part(13)
    torch.testing.assert_close(got, want)
    weight = rand(*want.shape)
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    for p, q in zip(whole.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad)
    modes = whole.modes()
    if modes is not None:
        torch.testing.assert_close(tuple(part.modes()), tuple(t[:, 1:3] for t in modes))


@FILTER
def test_modes_are_the_taps(name: str, causal: bool) -> None:
    h = build(name, causal, dtype=torch.float64)
    modes = h.modes()
    if modes is None:
        return
    assert causal
    assert modes.is_real == (not modes.residue.is_complex())
    assert (modes.decay > 0).all()
    if modes.is_real:
        assert (modes.angle == 0).all()
    pole = torch.exp(torch.complex(-modes.decay, modes.angle))
    want = [modes.first]
    state = torch.ones_like(pole)
    for _ in range(1, L_MAX):
        want.append((modes.residue * state).real.sum(-1))
        state = state * pole
    torch.testing.assert_close(h(L_MAX), torch.stack(want, dim=1))


@FILTER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(name: str, causal: bool, dtype: torch.dtype) -> None:
    built, cast = build(name, causal, dtype=dtype), build(name, causal)
    want = cast(L_MAX).detach()
    cast.to(dtype)
    inside = torch.float64 if dtype == torch.float64 else torch.float32
    for h in (built, cast):
        assert {t.dtype for t in h.state_dict().values()} == {inside}
        assert h(L_MAX).dtype == inside
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(h(L_MAX), h(L_MAX))
            assert h(L_MAX).dtype == inside
    torch.testing.assert_close(cast(L_MAX).float(), want, rtol=1e-3, atol=1e-3)
    cast.keep_float32 = False
    assert {p.dtype for p in cast.half().parameters()} == {torch.float16}
    assert cast(L_MAX).dtype == torch.float32


@FILTER
def test_gradients(name: str, causal: bool) -> None:
    h = build(name, causal, dtype=torch.float64)
    taps = h(L_MAX) if h.condition_dim is None else h(L_MAX, rand(2, h.condition_dim))
    taps.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.parameters())
    names, weights = zip(*h.named_parameters(), strict=True)

    # Along one direction in all weights at once; the sines' weights have a thousand.
    directions = [rand(*w.shape) / w.numel() ** 0.5 for w in weights]

    def taps(scale: Tensor) -> Tensor:
        moved = {n: w + scale * d for n, w, d in zip(names, weights, directions, strict=True)}
        return torch.func.functional_call(h, moved, (5,))

    assert torch.autograd.gradcheck(taps, (torch.zeros((), dtype=torch.float64, requires_grad=True),))


@FILTER
def test_meta_device_and_reset(name: str, causal: bool) -> None:
    h = build(name, causal, device="meta")
    assert all(t.is_meta for t in h.state_dict().values())
    assert h(7).shape == h.taps_shape(7)
    assert h(7).is_meta
    repr(h)
    h = h.to_empty(device="cpu")
    with torch.no_grad():
        for t in h.state_dict().values():
            t.fill_(torch.nan)
    repr(h)
    h.reset_parameters()
    assert all(t.isfinite().all() for t in h.state_dict().values())
    norm = padded(h, L_MAX).square().sum(1).sqrt()
    assert norm.mean() > 0.5
    assert norm.mean() < 2
    before = copy.deepcopy(h.state_dict())
    h.reset_parameters()
    assert any(not torch.equal(t, before[key]) for key, t in h.state_dict().items())


@FILTER
def test_copies_and_files(name: str, causal: bool) -> None:
    h = build(name, causal)
    want = h(L_MAX).detach()
    file = io.BytesIO()
    torch.save(h, file)
    file.seek(0)
    loaded = build(name, causal)
    loaded.load_state_dict(h.state_dict())
    assigned = build(name, causal, device="meta")
    assigned.load_state_dict(h.state_dict(), assign=True)
    for other in (
        copy.deepcopy(h),
        pickle.loads(pickle.dumps(h)),
        torch.load(file, weights_only=False),
        loaded,
        assigned,
    ):
        torch.testing.assert_close(other(L_MAX), want, rtol=0, atol=0)
    copied = copy.deepcopy(h)
    copied.reset_parameters()
    torch.testing.assert_close(h(L_MAX), want, rtol=0, atol=0)


@FILTER
def test_extending(name: str, causal: bool) -> None:
    """Taps stay, go on, or the error says why not."""
    h = build(name, causal, dtype=torch.float64)
    want = padded(h, L_MAX)
    if name in ENDING:
        with pytest.raises(ValueError, match=f"l_max={2 * L_MAX}"):
            h.extend(2 * L_MAX)
    else:
        h.extend(2 * L_MAX)
        assert h.l_max == 2 * L_MAX
        if h.depends_on_length:
            torch.testing.assert_close(padded(h, L_MAX), want)
            return
        taps = padded(h, 2 * L_MAX)
        torch.testing.assert_close(taps[:, :L_MAX] if causal else taps[:, L_MAX:-L_MAX], want)
    h.extend(L_MAX - 1)
    with pytest.raises(ValueError, match=f"l_max={L_MAX - 1}"):
        h(L_MAX)


@FILTER
def test_compile_and_export(name: str, causal: bool) -> None:
    h = build(name, causal, dtype=torch.float64).eval()
    torch.compiler.reset()  # filters with one forward between them would reach the limit of recompilations
    with torch.no_grad():
        want = h(L_MAX)
        torch.testing.assert_close(torch.compile(h, fullgraph=True, backend="aot_eager")(L_MAX), want)
        torch.testing.assert_close(torch.export.export(Fixed(h), ()).module()(), want)


class Fixed(torch.nn.Module):
    """A filter of one length, for ``torch.export``, whose arguments are tensors."""

    def __init__(self, filter: Filter) -> None:
        super().__init__()
        self.filter = filter

    def forward(self) -> Tensor:
        return self.filter(L_MAX)


@pytest.mark.parametrize("name", CASES)
def test_steps_chunks_and_the_parallel_form_agree(name: str) -> None:
    op = HyenaOperator(CHANNELS, L_MAX, order=FILTERS + 1, filter=build(name, dtype=torch.float64), dtype=torch.float64)
    x = rand(2, L_MAX, CHANNELS)
    if op.conv.filter.depends_on_length:
        with pytest.raises(ValueError, match="depend on the length"):
            op.init_state(2)
        return
    with torch.no_grad():
        want, state, got = op.eval()(x), op.init_state(2), []
        for part in x.split([5, 1, 1, 20, 1, L_MAX - 28], dim=1):
            y, state = op.prefill(part, state)
            got.append(y)
    torch.testing.assert_close(torch.cat(got, dim=1), want)


@FILTER
def test_an_operator_computes_the_definition(name: str, causal: bool) -> None:
    """The filter in an operator is the convolution with its taps, written out."""
    source = build(name, causal, dtype=torch.float64)
    op = HyenaOperator(CHANNELS, L_MAX, order=FILTERS + 1, filter=source, causal=causal, dtype=torch.float64).eval()
    x, length = rand(1, 23, CHANNELS), 23
    with torch.no_grad():
        taps = padded(source, length)
        matrix = torch.zeros(FILTERS, length, length, CHANNELS, dtype=torch.float64)
        for t in range(length):
            for s in range(t + 1 if causal else length):
                matrix[:, t, s] = taps[:, t - s if causal else length - 1 + t - s]
        z = torch.nn.functional.conv1d(
            torch.nn.functional.pad(op.in_proj(x).transpose(1, 2), (2, 0)),
            op.short.weight[:, None],
            op.short.bias,
            groups=op.short.weight.size(0),
        ).transpose(1, 2)
        *gates, v = z.split(CHANNELS, dim=2)
        for i, gate in enumerate(reversed(gates[1:])):
            v = gate * v
            v = torch.einsum("tsc,bsc->btc", matrix[i], v) + op.conv.bias[i] * v
        torch.testing.assert_close(op(x), op.out_proj(gates[0] * v))
