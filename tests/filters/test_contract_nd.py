"""What every filter over grids owes, run over everything of the kind that ``hyena.filters`` exports."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from hyena import filters
from hyena.filters import (
    S4,
    S4D,
    S4ND,
    ExplicitFilter,
    FiLMFilterND,
    FilterND,
    HyenaFilter,
    HyenaFilterND,
    SeparableFilter,
)

CHANNELS, FILTERS = 4, 2
SIZES = {1: (9,), 2: (7, 5), 3: (4, 3, 5)}

CASES: dict[str, Callable[..., FilterND]] = {
    "hyena": partial(HyenaFilterND, emb_dim=5, width=8),
    "hyena, gaussian": partial(HyenaFilterND, emb_dim=5, width=8, window="gaussian"),
    "hyena, one hidden layer": partial(HyenaFilterND, inner_layers=0, width=8),
    "film": partial(FiLMFilterND, condition_dim=3, emb_dim=5, width=8),
    "s4nd": partial(S4ND, filter=partial(S4D, modes=3)),
    "s4nd, s4": partial(S4ND, filter=partial(S4, modes=3)),
    "separable": partial(SeparableFilter, filter=partial(HyenaFilter, emb_dim=5, width=8)),
    "separable, few taps": partial(SeparableFilter, filter=partial(ExplicitFilter, taps=3)),
}

FILTER = pytest.mark.parametrize("name", CASES)
AXES = pytest.mark.parametrize("axes", [1, 2, 3])


def build(name: str, axes: int, **at: object) -> FilterND:
    return CASES[name](CHANNELS, SIZES[axes], FILTERS, **at)


def exported() -> set[type[FilterND]]:
    kinds = (getattr(filters, name) for name in filters.__all__)
    return {k for k in kinds if isinstance(k, type) and issubclass(k, FilterND) and not inspect.isabstract(k)}


def middle(taps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The taps of a smaller grid among those of a larger."""
    for dim, n in enumerate(size, 1):
        taps = taps.narrow(dim, (taps.size(dim) + 1) // 2 - n, 2 * n - 1)
    return taps


def test_every_exported_filter_has_a_case() -> None:
    assert exported() == {type(build(name, 2)) for name in CASES}


@pytest.mark.parametrize("kind", sorted(exported(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_constructors_begin_alike(kind: type[FilterND]) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters)[:3] == ["channels", "size", "num_filters"]
    keywords = {p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {"device", "dtype"} <= keywords == set(list(parameters)[3:])
    make = partial(kind, filter=S4D) if kind is SeparableFilter else kind
    for channels, size, error, match in (
        (0, (8, 8), ValueError, "channels >= 1"),
        (4, (8, 0), ValueError, r"got 8, 0"),
        (4, (), ValueError, r"1 to 3 axes, got size=\(\)"),
        (4, (2, 2, 2, 2), ValueError, r"1 to 3 axes, got size=\(2, 2, 2, 2\)"),
        (4, (8, 8.0), TypeError, "must be an int, got 8.0"),
        (4, "88", TypeError, "got '88'"),
        (4, 8.0, TypeError, "got 8.0"),
    ):
        with pytest.raises(error, match=match):
            make(channels, size)
    with pytest.raises(TypeError, match="nonsense"):
        make(4, 8, nonsense=1)
    assert make(4, 8).size == (8,)


@FILTER
@AXES
def test_shapes(name: str, axes: int) -> None:
    h, most = build(name, axes), SIZES[axes]
    for size in (most, (1,) * axes, tuple(max(1, n - 1 - i) for i, n in enumerate(most))):
        assert h(size).shape == h.taps_shape(size) == (FILTERS, *(2 * n - 1 for n in size), CHANNELS)
    for wrong in ((*most[:-1], most[-1] + 1), (*most, 1), (0,) * axes):
        with pytest.raises(ValueError, match=r"size=\(.*not \("):
            h(wrong)


@FILTER
@AXES
def test_a_smaller_filter_is_part_of_a_larger(name: str, axes: int) -> None:
    h = build(name, axes, dtype=torch.float64)
    size = tuple(n - 2 for n in SIZES[axes])
    torch.testing.assert_close(h(size), middle(h(SIZES[axes]), size))


@FILTER
@AXES
def test_factors_are_the_taps(name: str, axes: int) -> None:
    h = build(name, axes, dtype=torch.float64)
    factors = h.factors(SIZES[axes])
    if factors is None:
        return
    product = torch.ones(FILTERS, *(1,) * axes, CHANNELS, dtype=torch.float64)
    for axis, (factor, n) in enumerate(zip(factors, SIZES[axes], strict=True)):
        missing = n - (factor.size(1) + 1) // 2
        factor = torch.nn.functional.pad(factor, (0, 0, missing, missing))
        shape = [FILTERS, *(1,) * axes, CHANNELS]
        shape[axis + 1] = 2 * n - 1
        product = product * factor.reshape(shape)
    torch.testing.assert_close(h(SIZES[axes]), product)


@FILTER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    built, cast = build(name, 2, dtype=dtype), build(name, 2)
    want = cast(SIZES[2]).detach()
    cast.to(dtype)
    inside = torch.float64 if dtype == torch.float64 else torch.float32
    for h in (built, cast):
        assert {t.dtype for t in h.state_dict().values()} == {inside}
        with torch.autocast("cpu", torch.bfloat16):
            assert h(SIZES[2]).dtype == inside
    torch.testing.assert_close(cast(SIZES[2]).float(), want, rtol=1e-3, atol=1e-3)


@FILTER
@AXES
def test_gradients(name: str, axes: int) -> None:
    h = build(name, axes, dtype=torch.float64)
    condition = () if h.condition_dim is None else (torch.randn(2, h.condition_dim, dtype=torch.float64),)
    h(SIZES[axes], *condition).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.parameters())
    names, weights = zip(*h.named_parameters(), strict=True)
    directions = [torch.randn_like(w) / w.numel() ** 0.5 for w in weights]

    def taps(scale: Tensor) -> Tensor:
        moved = {n: w + scale * d for n, w, d in zip(names, weights, directions, strict=True)}
        return torch.func.functional_call(h, moved, ((2,) * axes,))

    assert torch.autograd.gradcheck(taps, (torch.zeros((), dtype=torch.float64, requires_grad=True),))


@FILTER
def test_meta_device_and_reset(name: str) -> None:
    h = build(name, 2, device="meta")
    assert all(t.is_meta for t in h.state_dict().values())
    assert h((3, 2)).is_meta
    h = h.to_empty(device="cpu")
    with torch.no_grad():
        for t in h.state_dict().values():
            t.fill_(torch.nan)
    repr(h)
    h.reset_parameters()
    norm = h(SIZES[2]).square().sum((1, 2)).sqrt()
    assert 0.4 < norm.mean() < 2.5
    before = copy.deepcopy(h.state_dict())
    h.reset_parameters()
    assert any(not torch.equal(t, before[key]) for key, t in h.state_dict().items())


@FILTER
def test_copies_and_files(name: str) -> None:
    h = build(name, 2)
    want = h(SIZES[2]).detach()
    file = io.BytesIO()
    torch.save(h, file)
    file.seek(0)
    loaded, assigned = build(name, 2), build(name, 2, device="meta")
    loaded.load_state_dict(h.state_dict())
    assigned.load_state_dict(h.state_dict(), assign=True)
    for other in (
        copy.deepcopy(h),
        pickle.loads(pickle.dumps(h)),
        torch.load(file, weights_only=False),
        loaded,
        assigned,
    ):
        torch.testing.assert_close(other(SIZES[2]), want, rtol=0, atol=0)


@FILTER
def test_extending(name: str) -> None:
    h, size, more = build(name, 2, dtype=torch.float64), SIZES[2], (9, 11)
    want = h(size).detach()
    h.extend(more)
    assert h.size == more
    if not any(getattr(one, "depends_on_length", False) for one in h.modules()):
        torch.testing.assert_close(middle(h(more), size), want)
    for wrong, match in (((4,), r"2 axes, \(9, 11\), cannot be extended to 1, \(4,\)"), ((4, 0), "got 4, 0")):
        with pytest.raises(ValueError, match=match):
            h.extend(wrong)
    with pytest.raises(ValueError, match="'continue', 'stretch', got 'shrink'"):
        h.extend(size, "shrink")
    h.extend((3, 3))
    with pytest.raises(ValueError, match=r"size=\(3, 3\)"):
        h(size)


@FILTER
def test_compile_and_export(name: str) -> None:
    h = build(name, 2, dtype=torch.float64).eval()
    torch.compiler.reset()
    with torch.no_grad():
        want = h(SIZES[2])
        torch.testing.assert_close(torch.compile(h, fullgraph=True, backend="aot_eager")(SIZES[2]), want)
        torch.testing.assert_close(torch.export.export(Fixed(h), ()).module()(), want)


class Fixed(torch.nn.Module):
    """A filter of one size, for ``torch.export``, whose arguments are tensors."""

    def __init__(self, filter: FilterND) -> None:
        super().__init__()
        self.filter = filter

    def forward(self) -> Tensor:
        return self.filter(SIZES[2])


def test_the_base_says_that_it_cannot_be_extended() -> None:
    class Fixed(FilterND):
        def forward(self, size):
            return torch.zeros(self.taps_shape(size))

    with pytest.raises(ValueError, match=r"Fixed made for size=\(3, 4\) .* size=\(5, 5\)"):
        Fixed(2, (3, 4)).extend((5, 5))
