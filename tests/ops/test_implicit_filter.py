"""``hyena::implicit_filter`` against the same layers in float64, and its backward against their autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.cases import Tier, rand, run
from hyena import ops


def inputs(
    taps: int, features: int = 5, width: int = 8, inner: int = 2, outputs: int = 6, freq: float = 1.0
) -> dict[str, Tensor]:
    """Inputs of the op, float64."""
    return {
        "features": rand(taps, features),
        "time": torch.arange(taps).double() / 128,
        "first": rand(width, features, seed=1) / 2,
        "inner": rand(inner, width, width, seed=2) / 2,
        "biases": rand(inner + 1, width, seed=3),
        "freq": freq + rand(width, seed=4) / 4,
        "out": rand(outputs, width, seed=5),
        "deltas": rand(outputs, seed=6),
    }


def reference(
    features: Tensor,
    time: Tensor,
    first: Tensor,
    inner: Tensor,
    biases: Tensor,
    freq: Tensor,
    out: Tensor,
    deltas: Tensor,
    shift: float,
    filters: int,
) -> Tensor:
    """A layer after the other."""
    x = torch.sin(freq * (features @ first.mT + biases[0]))
    for i in range(inner.size(0)):
        x = torch.sin(freq * (x @ inner[i].mT + biases[i + 1]))
    h = (x @ out.mT) * (torch.exp(-time[:, None] * deltas.abs()) + shift)
    return torch.stack(h.chunk(filters, dim=1))


def deviation(got: Tensor, want: Tensor) -> float:
    """Root mean square deviation as a share of the root mean square."""
    if got.numel() == 0:
        return 0.0
    scale = want.square().mean().sqrt().item()
    return (got.double().cpu() - want).square().mean().sqrt().item() / (scale or 1.0)


def noise_like(t: Tensor, seed: int) -> Tensor:
    """Uniform in -1 … 1."""
    return 2 * torch.rand(t.shape, generator=torch.Generator().manual_seed(seed), dtype=t.dtype) - 1


def check(
    tier: Tier, dtype: torch.dtype, x: dict[str, Tensor], shift: float = 0.25, filters: int = 1, every: bool = True
) -> None:
    """Output and gradients: some times what an eps of the inputs changes, a kernel's within twice the fallback's.

    A chain of sines has no size that its errors could be compared with as the sums of products of the other ops have;
    what becomes of an error made early on is measured instead.
    """
    dh = rand(filters, x["features"].size(0), x["out"].size(0) // filters, seed=7)
    constant = () if every else ("features", "time", "deltas")

    def both(
        fn: object, x: dict[str, Tensor], dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        fixed = {name: x[name].to(device, dtype) for name in constant}
        leaves = {name: t.to(device, dtype) for name, t in x.items() if name not in constant}
        empty = {name: leaves.pop(name) for name in list(leaves) if leaves[name].numel() == 0}
        got = run(lambda **a: fn(**a, **fixed, **empty, shift=shift, filters=filters), leaves, dh.to(device, dtype))
        return got.output, got.gradients

    def deviations(output: Tensor, grads: dict[str, Tensor]) -> dict[str, float]:
        by_name = {"d " + name: deviation(g, want_grads[name]) for name, g in grads.items()}
        return {"output": deviation(output, want), **by_name}

    want, want_grads = both(reference, x)
    eps, noise = torch.finfo(dtype).eps, dict.fromkeys(["output", *("d " + name for name in want_grads)], 0.0)
    for seed in range(4):
        found = deviations(*both(reference, {name: t + eps * t * noise_like(t, seed) for name, t in x.items()}))
        noise = {name: max(e, found[name]) for name, e in noise.items()}
    errors = {}
    for each in (tier, Tier("fallback", tier.device)):
        with each():
            got, grads = both(torch.ops.hyena.implicit_filter, x, dtype, tier.device)
        assert got.dtype == dtype
        assert got.is_contiguous()
        errors[each] = deviations(got, grads)
    for name, e in errors[each].items():
        unit, kernel = eps + noise[name], errors[tier][name]
        assert max(e, kernel) <= 32 * unit, (name, kernel / unit, e / unit)
        if dtype == torch.float32:  # in float64 the fallback is as good as what it is compared with
            assert kernel <= 2 * e + 2 * unit, (name, kernel / unit, e / unit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("taps", [1, 2, 63, 64, 65, 129, 1009])
def test_lengths(tier: Tier, dtype: torch.dtype, taps: int) -> None:
    check(tier, dtype, inputs(taps))


@pytest.mark.parametrize("every", [True, False], ids=["every gradient", "weights alone"])
@pytest.mark.parametrize("width", [1, 16, 33, 64, 130])
def test_widths(tier: Tier, width: int, every: bool) -> None:
    x = inputs(70, features=33, width=width, outputs=2 * width + 2)
    x = {name: t / max(1, width / 8) ** 0.5 if name in ("inner", "first") else t for name, t in x.items()}
    check(tier, torch.float32, x, filters=2, every=every)


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    draw = data.draw
    filters, channels = draw(st.integers(1, 3)), draw(st.integers(1, 70))
    x = inputs(
        draw(st.integers(1, 140)),
        features=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 24)),
        inner=draw(st.integers(0, 3)),
        outputs=filters * channels,
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x["first"], x["inner"] = x["first"] / x["first"].size(1) ** 0.5, x["inner"] / x["inner"].size(1) ** 0.5
    check(tier, dtype, x, draw(st.sampled_from([0.0, 0.5])), filters, draw(st.booleans()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sines_of_large_angles(tier: Tier, dtype: torch.dtype) -> None:
    """Beyond the range that vectors are reduced in, too; nothing is made of what is no number."""
    angle = torch.tensor([0.0, 3.0, -10_000.5, 99_999.0, 1e6, -1e6 - 1, 1e7, 1e15, math.inf, math.nan], dtype=dtype)
    one = torch.ones(1, 1, dtype=dtype)
    x = [angle[:, None], torch.zeros_like(angle), one, one.new_zeros(0, 1, 1), 0 * one, one[0], one, one[0]]
    x = [t.to(tier.device).requires_grad_() for t in x]
    with tier():
        h = torch.ops.hyena.implicit_filter(*x, 0.0, 1)[0, :, 0]
        (dx,) = torch.autograd.grad(h.sum(), x[0])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(h.cpu().double(), angle.double().sin(), rtol=0, atol=2 * eps, equal_nan=True)
    torch.testing.assert_close(dx[:, 0].cpu().double(), angle.double().cos(), rtol=0, atol=2 * eps, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_windows_from_one_to_nothing(tier: Tier, dtype: torch.dtype) -> None:
    """A filter that is 1 at every lag shows its window."""
    deltas = torch.tensor([0.0, 1e-9, -0.5, 3.0, -50.0, 85.0, 100.0, 1e4, math.inf, math.nan], dtype=dtype)
    time = torch.tensor([0.5, 1.0, 17.0], dtype=dtype)
    one, n = torch.ones(1, 1, dtype=dtype), deltas.numel()
    x = [0 * time[:, None], time, one, one.new_zeros(0, 1, 1), math.pi / 2 * one, one[0], one.expand(n, 1), deltas]
    x = [t.to(tier.device) for t in x]
    x[7].requires_grad_()
    with tier():
        h = torch.ops.hyena.implicit_filter(*x, 0.25, 1)[0]
        (d,) = torch.autograd.grad(h.sum(), x[7])
    want = deltas.double().requires_grad_()
    window = torch.exp(-time.double()[:, None] * want.abs()) + 0.25
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(
        h.cpu().double(), window.detach(), rtol=4 * torch.finfo(dtype).eps, atol=tiny, equal_nan=True
    )
    (want_d,) = torch.autograd.grad(window.sum(), want)
    rtol = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(d.cpu().double(), want_d, rtol=rtol, atol=20 * tiny, equal_nan=True)


def test_any_strides(tier: Tier) -> None:
    x = {name: t.float().to(tier.device) for name, t in inputs(70).items()}
    strided = {name: t[..., None].expand(*t.shape, 3).contiguous()[..., 1] for name, t in x.items()}
    dh = torch.ones(1, 1, 1, device=tier.device).expand(2, 70, 3)
    with tier():
        want = run(lambda **a: torch.ops.hyena.implicit_filter(**a, shift=0.0, filters=2), x, dh.contiguous())
        got = run(lambda **a: torch.ops.hyena.implicit_filter(**a, shift=0.0, filters=2), strided, dh)
    torch.testing.assert_close(got.output, want.output)
    for name, g in got.gradients.items():
        torch.testing.assert_close(g, want.gradients[name], msg=lambda m, name=name: f"{name}: {m}")


def test_the_same_call_gives_the_same_bits(tier: Tier) -> None:
    x = {name: t.float().to(tier.device) for name, t in inputs(1009, width=33).items()}
    dh = rand(1, 1009, 6).float().to(tier.device)
    with tier():
        first, second = (
            run(lambda **a: torch.ops.hyena.implicit_filter(**a, shift=0.0, filters=1), x, dh) for _ in range(2)
        )
    assert torch.equal(first.output, second.output)
    for name, g in first.gradients.items():
        assert torch.equal(g, second.gradients[name]), name


@pytest.mark.parametrize("every", [True, False], ids=["every gradient", "weights alone"])
def test_gradgradcheck(tier: Tier, every: bool) -> None:
    x = {name: t.to(tier.device) for name, t in inputs(4, features=3, width=2, inner=2, outputs=4).items()}
    leaves = [t.requires_grad_(every or name not in ("features", "time", "deltas")) for name, t in x.items()]
    with tier():
        assert torch.autograd.gradcheck(torch.ops.hyena.implicit_filter, (*leaves, 0.5, 2))
        assert torch.autograd.gradgradcheck(torch.ops.hyena.implicit_filter, (*leaves, 0.5, 2))


@pytest.mark.parametrize("inner", [0, 2])
def test_opcheck(device: str, inner: int) -> None:
    leaves = [t.float().to(device).requires_grad_() for t in inputs(9, inner=inner).values()]
    torch.library.opcheck(torch.ops.hyena.implicit_filter.default, (*leaves, 0.5, 2))
    dh = torch.ones(2, 9, 3, device=device)
    for every in (True, False):
        torch.library.opcheck(torch.ops.hyena.implicit_filter_backward.default, (dh, *leaves, 0.5, every))


def test_the_checked_call(tier: Tier) -> None:
    x = {name: t.to(tier.device) for name, t in inputs(9).items()}
    rest = [x[name] for name in ("freq", "out", "deltas")]
    layers = list(zip([x["first"], *x["inner"]], x["biases"], strict=True))
    with tier():
        for count in (1, 3):
            some = {**x, "inner": x["inner"][: count - 1], "biases": x["biases"][:count]}
            got = ops.implicit_filter(x["features"], x["time"], layers[:count], *rest, shift=0.5, filters=3)
            torch.testing.assert_close(got, reference(**some, shift=0.5, filters=3))


def test_errors_name_the_numbers() -> None:
    x = inputs(9)
    features, time, freq, out, deltas = (x[name] for name in ("features", "time", "freq", "out", "deltas"))
    layers = list(zip([x["first"], *x["inner"]], x["biases"], strict=True))
    with pytest.raises(ValueError, match=r"float32 or float64 of shape \(K, E\), got torch.float16 of shape \(9, 5\)"):
        ops.implicit_filter(features.half(), time, layers, freq, out, deltas)
    with pytest.raises(ValueError, match=r"time must be torch.float64 of shape \(9,\), got .* shape \(8,\)"):
        ops.implicit_filter(features, time[:8], layers, freq, out, deltas)
    with pytest.raises(ValueError, match=r"weight 1 must be .* of shape \(8, 8\), got .* shape \(8, 5\)"):
        ops.implicit_filter(features, time, [layers[0], layers[0]], freq, out, deltas)
    with pytest.raises(ValueError, match=r"deltas must be torch.float64 of shape \(6,\), got torch.float32"):
        ops.implicit_filter(features, time, layers, freq, out, deltas.float())
    with pytest.raises(ValueError, match=r"6 outputs are not a multiple of 4 filters"):
        ops.implicit_filter(features, time, layers, freq, out, deltas, filters=4)
    with pytest.raises(ValueError, match=r"at least one hidden layer"):
        ops.implicit_filter(features, time, [], freq, out, deltas)


def test_a_gradient_over_many_taps_is_as_exact_as_one_over_few(tier: Tier) -> None:
    """Sums that do not cancel: in one chain of 60 thousand terms they would be 2e-6 off; torch's are up to 4e-6."""
    x = {name: t.float().to(tier.device) for name, t in inputs(60000, inner=1, outputs=3).items()}
    x["time"] /= 400
    dh = torch.full((1, 60000, 3), 0.1, device=tier.device)
    with tier():
        got = torch.ops.hyena.implicit_filter_backward(dh, *x.values(), 0.25, True)
    leaves = {name: t.double().requires_grad_() for name, t in x.items()}
    want = torch.autograd.grad(reference(**leaves, shift=0.25, filters=1), [*leaves.values()], dh.double())
    limit = 1e-6 if tier.device == "cpu" and tier.name != "fallback" else 1e-5
    for name, g, t in zip(leaves, got, want, strict=True):
        assert deviation(g, t.cpu()) <= limit, name


def test_gradients_where_there_are_no_channels(tier: Tier) -> None:
    x = {name: t.float().to(tier.device) for name, t in inputs(200, outputs=0).items()}
    with tier():
        for found in torch.ops.hyena.implicit_filter_backward(
            torch.empty(1, 200, 0).to(tier.device), *x.values(), 0.1, True
        ):
            assert not found.any()


def test_no_taps(tier: Tier) -> None:
    x = {name: t.float().to(tier.device).requires_grad_() for name, t in inputs(0).items()}
    with tier():
        h = torch.ops.hyena.implicit_filter(*x.values(), 0.1, 2)
        assert h.shape == (2, 0, 3)
        assert not any(g.any() for g in torch.autograd.grad(h.sum(), [*x.values()]))
