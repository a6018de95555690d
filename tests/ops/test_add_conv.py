"""``hyena::add_conv_``: a long convolution added to what is there, and to nothing else."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.cases import ANY_LENGTH, DTYPES, LAYOUTS, Tier, laid_out, rand
from helpers.tolerances import TOLERANCE, error, kernel_limit, mean_error
from hyena import ops


def check(
    tier: Tier,
    batch: int,
    length: int,
    wanted: int,
    groups: int,
    width: int = 1,
    dtype: torch.dtype = torch.float64,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
    causal: bool = False,
) -> None:
    channels = groups * width
    y, v = rand(batch, wanted, channels, seed=1), rand(batch, length, channels, seed=2)
    v = laid_out(v, layouts[1])
    h = rand(length if causal else 2 * length - 1, groups, seed=3)
    want, square = (
        a + oracle.gated_conv(b, c, causal=causal)[:, :wanted]
        for a, b, c in ((y, v, h), (y.square(), v.square(), h.square()))
    )
    got, v = (laid_out(t.to(tier.device, dtype), layout) for t, layout in zip((y, v), layouts))
    before = v.clone()
    with tier():
        h = h.to(tier.device, torch.promote_types(dtype, torch.float32))
        spectrum = ops.filter_spectrum(h[None], ops.transform_length(length), causal)[0]
        assert ops.add_conv_(got, v, spectrum) is None
    assert torch.equal(v, before)
    assert error(got, want, square) <= max(TOLERANCE[dtype], TOLERANCE[torch.promote_types(dtype, torch.float32)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:-1])
def test_layouts(tier: Tier, dtype: torch.dtype, layout: str) -> None:
    for other in LAYOUTS:
        check(tier, 3, 21, 21, 5, 2, dtype, (layout, other))


@given(data=st.data())
def test_anything(tier: Tier, data: st.DataObject) -> None:
    length = data.draw(ANY_LENGTH)
    wanted = data.draw(st.integers(0, length))
    groups, width = data.draw(st.sampled_from([1, 2, 3, 8, 9, 17])), data.draw(st.sampled_from([1, 1, 2, 5]))
    dtype, causal = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    check(tier, data.draw(st.integers(0, 3)), length, wanted, groups, width, dtype, causal=causal)


@pytest.mark.parametrize(("length", "wanted"), [(4096, 4096), (2048, 1300)])
def test_long(tier: Tier, length: int, wanted: int) -> None:
    """Transforms of columns and rows, which look ahead in memory."""
    check(tier, 1, length, wanted, 2, 1, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_is_at_most_twice_as_wrong_and_gives_the_same_bits(tier: Tier, dtype: torch.dtype) -> None:
    y, v, h = rand(2, 1009, 9, seed=1), rand(2, 1009, 9, seed=2), rand(2017, 9, seed=3)
    want, square = (
        a + oracle.gated_conv(b, c, causal=False) for a, b, c in ((y, v, h), (y.square(), v.square(), h.square()))
    )
    results = {}
    for name, each in (("one", tier), ("again", tier), ("fallback", Tier("fallback", tier.device))):
        with each():
            wide = h.to(tier.device, torch.promote_types(dtype, torch.float32))
            spectrum = ops.filter_spectrum(wide[None], ops.transform_length(1009), False)[0]
            results[name] = y.to(tier.device, dtype)
            ops.add_conv_(results[name], v.to(tier.device, dtype), spectrum)
    assert torch.equal(results["one"], results["again"])
    errors = {name: mean_error(got, want, square) for name, got in results.items()}
    assert errors["one"] <= kernel_limit(errors["fallback"], dtype), errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_around_it_changes(tier: Tier, dtype: torch.dtype) -> None:
    """As a decode calls it: the past of a memory into its future, other channels beside them."""
    whole = rand(2, 40, 24).to(tier.device, dtype)
    memory, before = whole[..., 3:21], whole.clone()
    with tier():
        h = rand(31, 18, seed=1).to(tier.device, dtype)
        spectrum = ops.filter_spectrum(h[None], 16, False)[0]
        ops.add_conv_(memory[:, 20:31], memory[:, 4:20], spectrum)
    assert not torch.equal(whole[:, 20:31, 3:21], before[:, 20:31, 3:21])
    whole[:, 20:31, 3:21] = before[:, 20:31, 3:21]
    assert torch.equal(whole, before)


def test_pieces_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hyena.ops.add_conv"], "_CHUNK", 100)
    check(Tier("fallback", "cpu"), 2, 29, 29, 3, 2)
    check(Tier("fallback", "cpu"), 2, 29, 11, 6)


@pytest.mark.parametrize("kernels", [False, True], ids=["as it is", "as if of kernels"])
def test_the_fallback_reads_spectra_of_kernels(device: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device without a kernel of this op runs, called without the checks: rows in turn."""
    if kernels:
        monkeypatch.setattr(sys.modules["hyena.ops.add_conv"], "is_of_kernels", lambda _: True)
    y, v, h = rand(3, 11, 6, seed=1), rand(3, 29, 6, seed=2), rand(57, 6, seed=3)
    got = y.float().to(device)
    spectrum = ops.filter_spectrum(h[None].float().to(device), 30, False)[0]
    torch.ops.hyena.add_conv__fallback(got, v.float().to(device), spectrum)
    want = y + oracle.gated_conv(v, h, causal=False)[:, :11]
    square = y.square() + oracle.gated_conv(v.square(), h.square(), causal=False)[:, :11]
    assert error(got, want, square) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("layout", ["contiguous", "channel_major"])
def test_opcheck(device: str, layout: str) -> None:
    y, v = (laid_out(rand(2, 6, 4, seed=s).float().to(device), layout) for s in (1, 2))
    spectrum = ops.filter_spectrum(rand(1, 6, 2).float().to(device), 6)[0]
    torch.library.opcheck(torch.ops.hyena.add_conv_.default, (y[:, :5], v, spectrum))


def test_in_a_compiled_graph(device: str) -> None:
    y, v = (rand(2, 6, 4, seed=s).to(device) for s in (1, 2))
    spectrum = ops.filter_spectrum(rand(1, 6, 4).to(device), 6)[0]

    def twice(y: Tensor) -> Tensor:
        y = 2 * y
        torch.ops.hyena.add_conv_(y, v, spectrum)
        return y + 1

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y), twice(y))


def test_an_expanded_sum_is_refused(tier: Tier) -> None:
    """Several of its entries are one number in memory."""
    v = torch.randn(2, 7, 4, device=tier.device)
    with tier():
        spectrum = ops.filter_spectrum(torch.randn(1, 7, 4, device=tier.device), 8)[0]
        for y in (v.new_zeros(1, 7, 4).expand(2, -1, -1), v.new_zeros(2, 7, 1).expand(-1, -1, 4)):
            with pytest.raises(ValueError, match=r"y of shape \(2, 7, 4\) is expanded .*pass y.clone\(\)"):
                ops.add_conv_(y, v, spectrum)


def test_errors_name_the_numbers() -> None:
    y, v, spectrum = torch.zeros(2, 5, 6), torch.zeros(2, 7, 6), ops.filter_spectrum(torch.zeros(1, 7, 3), 8)[0]
    for wrong in (torch.zeros(2, 8, 6), torch.zeros(1, 5, 6), torch.zeros(2, 5, 5), torch.zeros(5, 6), y.double()):
        with pytest.raises(ValueError, match=r"torch.float32 of shape \(2, n, 6\) with n at most 7, on cpu; got"):
            ops.add_conv_(wrong, v, spectrum)
    with pytest.raises(ValueError, match=r"a row of 9 positions needs.*this one was built for 8"):
        ops.add_conv_(y, torch.zeros(2, 9, 6), spectrum)
    with pytest.raises(ValueError, match=r"\(G, P \+ 1, 2\), one filter's, .*got .* \(1, 3, 9, 2\)"):
        ops.add_conv_(y, v, spectrum[None])
    with pytest.raises(ValueError, match="has no gradient"):
        ops.add_conv_(y, v.requires_grad_(), spectrum)
    with torch.no_grad():
        ops.add_conv_(y, v, spectrum)


def test_autograd_knows_of_the_change(tier: Tier) -> None:
    p = torch.ones((), device=tier.device, requires_grad=True)
    y, v = torch.ones(1, 8, 3, device=tier.device), torch.ones(1, 8, 3, device=tier.device)
    loss = (p * y).sum()
    with tier():
        ops.add_conv_(y, v, ops.filter_spectrum(torch.ones(1, 8, 3, device=tier.device), 8, True)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
