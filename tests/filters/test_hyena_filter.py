"""Implicit filters: encoding, FFN, window, and the filter made of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hyena import HyenaFilter, ops
from hyena.filters import ExponentialWindow, LearnedEncoding, PositionalEncoding, SineFFN, implicit

CPU = torch.device("cpu")


def test_the_encoding_is_time_and_complex_exponentials() -> None:
    features, t = PositionalEncoding(7, 11)(5, CPU, torch.float64)
    assert features.shape == (5, 7)
    for k in range(5):
        assert t[k] == k / 10
        for band, f in enumerate((1e-4, (1e-4 + 2) / 2, 2)):
            value = torch.exp(torch.tensor(-1j * f * 2 * math.pi * k / 11, dtype=torch.complex128))
            torch.testing.assert_close(features[k, 1 + band], value.real)
            torch.testing.assert_close(features[k, 4 + band], value.imag)
    assert torch.equal(features[:, 0], t)


def test_the_smallest_encoding_and_the_shortest_row() -> None:
    features, t = PositionalEncoding(3, 1)(1, CPU, torch.float32)
    assert features.tolist() == [[0.0, 1.0, 0.0]]
    assert t.tolist() == [0.0]


@pytest.mark.parametrize("emb_dim", [1, 4])
def test_features_come_in_pairs_and_time(emb_dim: int) -> None:
    with pytest.raises(ValueError, match=f"odd and at least 3 .* got {emb_dim}"):
        PositionalEncoding(emb_dim, 8)


def test_a_learned_encoding_starts_as_the_computed_one() -> None:
    computed, learned = PositionalEncoding(5, 9), LearnedEncoding(5, 9)
    for length in (9, 4):
        for a, b in zip(computed(length, CPU, torch.float32), learned(length, CPU, torch.float32), strict=True):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        learned.table.zero_()
    learned.reset_parameters()
    torch.testing.assert_close(learned(9, CPU, torch.float32)[0], computed(9, CPU, torch.float32)[0])
    learned(9, CPU, torch.float32)[0].sum().backward()
    assert learned.table.grad.eq(1).all()


def test_the_ffn_is_sines_between_linear_layers() -> None:
    ffn, x = SineFFN(5, 8, 3, inner_layers=1, freq=2.0).double(), torch.randn(4, 5).double()
    first, second = ffn.hidden
    want = ffn.out.weight @ torch.sin(2 * second(torch.sin(2 * first(x)))).T
    torch.testing.assert_close(ffn(x), want.T)
    assert ffn.out.bias is None
    assert [name for name, _ in ffn.named_parameters() if "freq" in name] == ["freq"]


def test_the_ffn_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"width must be at least 1 and inner_layers at least 0, got 0 and 2"):
        SineFFN(5, 0, 3)
    with pytest.raises(ValueError, match=r"got 8 and -1"):
        SineFFN(5, 8, 3, inner_layers=-1)


def test_the_window_decays_to_target_at_both_ends() -> None:
    window = ExponentialWindow(5, 2, slow_decay_pct=1.5, fast_decay_pct=0.3, target=0.01, shift=0.25).double()
    w = window(torch.tensor([0.0, 0.3, 1.5]).double())
    assert w.shape == (3, 10)
    torch.testing.assert_close(w[0], torch.full((10,), 1.25).double())
    for channels in (w[:, :5], w[:, 5:]):
        torch.testing.assert_close(channels[2, 0].item(), 0.26, rtol=1e-6, atol=0)
        torch.testing.assert_close(channels[1, 4].item(), 0.26, rtol=1e-6, atol=0)
    spaces = window.deltas[:5].diff()
    torch.testing.assert_close(spaces, spaces[:1].expand(4))


def test_a_trainable_window_is_a_parameter() -> None:
    assert not list(ExponentialWindow(3).parameters())
    window = ExponentialWindow(3, trainable=True)
    window(torch.ones(2)).sum().backward()
    assert window.deltas.grad.abs().min() > 0


def test_the_window_names_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"target=1.5, slow_decay_pct=1.5, fast_decay_pct=0.3"):
        ExponentialWindow(3, target=1.5)
    with pytest.raises(ValueError, match=r"target=0.01, slow_decay_pct=-1, fast_decay_pct=0.3"):
        ExponentialWindow(3, slow_decay_pct=-1)


def test_a_filter_is_window_times_ffn_of_encoding() -> None:
    h = HyenaFilter(4, 20, 3, dtype=torch.float64)
    features, t = h.encoding(13, CPU, torch.float64)
    taps = h(13)
    assert taps.shape == (3, 13, 4)
    want = h.ffn(features) * h.window(t)
    for i in range(3):
        torch.testing.assert_close(taps[i], want[:, 4 * i : 4 * i + 4])


def test_two_sided_lags_are_in_order() -> None:
    h = HyenaFilter(4, 20, 2, causal=False, dtype=torch.float64)
    features, t = h.encoding(13, CPU, torch.float64)
    want, taps = h.ffn(features) * h.window(t), h(13)
    assert taps.shape == (2, 25, 4)
    for i in range(2):
        for k in range(13):
            torch.testing.assert_close(taps[i, 12 + k], want[k, 4 * i : 4 * i + 4])
            if k > 0:
                torch.testing.assert_close(taps[i, 12 - k], want[k, 8 + 4 * i : 12 + 4 * i])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
def test_a_shorter_filter_is_part_of_a_longer(causal: bool) -> None:
    h = HyenaFilter(4, 20, 2, causal=causal)
    part = h(20)[:, :13] if causal else h(20)[:, 7:-7]
    torch.testing.assert_close(h(13), part)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("l_max", [1, 2, 64, 3000, 10_000])
def test_filters_start_with_unit_norm(l_max: int, causal: bool) -> None:
    """White input leaves each convolution as strong as it went in, at any length; also after a new start."""
    h = HyenaFilter(6, l_max, 2, causal=causal)
    halves = 1 if causal else 2  # of norm 1 each, lag 0 counted once
    for _ in range(2):
        norm = h(l_max).square().sum(1).sqrt()
        # Long filters are measured at a part of their taps, to within a tenth or two.
        assert norm.min() > 0.8
        assert norm.max() < 1.2 * halves**0.5
        before = h.ffn.out.weight.clone()
        h.reset_parameters()
        assert not torch.equal(before, h.ffn.out.weight)


def test_dtypes() -> None:
    """Half-precision weights give float32 taps, in autocast too; float64 stays float64."""
    h = HyenaFilter(4, 20)
    want = h(20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(h(20), want)
    rounded = copy.deepcopy(h).bfloat16()
    assert rounded(20).dtype == torch.float32
    assert torch.equal(rounded(20), rounded.float()(20))
    assert copy.deepcopy(h).double()(20).dtype == torch.float64
    torch.testing.assert_close(copy.deepcopy(h).double()(20).float(), want, rtol=1e-4, atol=1e-4)
    assert HyenaFilter(4, 20, dtype=torch.float64).window.deltas.dtype == torch.float64


def test_gradients_reach_every_weight() -> None:
    for causal in (True, False):
        h = HyenaFilter(4, 20, 2, causal=causal)
        h(20).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.parameters())


@pytest.mark.parametrize("causal", [True, False])
def test_long_filters_are_computed_again_instead_of_kept(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, again = (HyenaFilter(4, 40, 2, causal=causal, dtype=torch.float64) for _ in range(2))
    again.load_state_dict(kept.state_dict())
    grad = torch.randn_like(kept(40))
    saved: dict[str, int] = {}

    def run(name: str, module: HyenaFilter) -> Tensor:
        def pack(x: Tensor) -> Tensor:
            saved[name] = saved.get(name, 0) + x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            h = module(40)
        h.backward(grad)
        return h.detach()

    monkeypatch.setattr(implicit.ops, "has_kernel", lambda *args: False)
    first = run("kept", kept)
    monkeypatch.setattr(implicit, "_RECOMPUTE_FROM", 40)
    torch.testing.assert_close(run("again", again), first, rtol=0, atol=0)
    assert saved.get("again", 0) < saved["kept"] / 10
    for a, b in zip(again.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def _nodes(t: Tensor) -> str:
    """Names of everything that ``t`` is differentiated through."""
    names, left = [], [t.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            names.append(node.name())
            left += [parent for parent, _ in node.next_functions]
    return " ".join(names)


FUSED = pytest.mark.skipif(not ops.has_kernel("implicit_filter", torch.device("cpu")), reason="no kernels here")


@FUSED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", ["none", "two-sided", "learned encoding", "trained window", "one layer"])
def test_the_kernel_is_the_modules(change: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    h = HyenaFilter(
        4,
        40,
        2,
        causal=change != "two-sided",
        emb_dim=5,
        inner_layers=0 if change == "one layer" else 2,
        freq=1.0,
        shift=0.1,
        encoding=LearnedEncoding(5, 40) if change == "learned encoding" else None,
        window=ExponentialWindow(4, 2, trainable=True) if change == "trained window" else None,
    ).to(dtype)
    weights = dict(h.named_parameters())
    results = []
    for kernels in (True, False):
        monkeypatch.setattr(implicit.ops, "has_kernel", lambda *args, kernels=kernels: kernels)
        taps = h(37)
        assert ("implicit_filter" in _nodes(taps)) == kernels
        grads = torch.autograd.grad(taps.square().sum(), list(weights.values()))
        results.append({"taps": taps.detach(), **dict(zip(weights, grads, strict=True))})
    tolerance = {} if dtype == torch.float64 else {"rtol": 2e-2 if dtype == torch.bfloat16 else 1e-3, "atol": 1e-3}
    for name, t in results[0].items():
        torch.testing.assert_close(t, results[1][name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@FUSED
def test_the_kernel_keeps_no_activations() -> None:
    h, saved = HyenaFilter(32, 1000, 2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        h(1000).sum().backward()
    sizes = sorted((t.numel() for t in saved), reverse=True)
    assert sizes[0] == 33 * 1000  # features, the next are weights
    assert sizes[1] < 1000 * 32


class Rising(ExponentialWindow):
    """Somebody's own."""

    def forward(self, t: Tensor) -> Tensor:
        return 2 - super().forward(t)


def test_changed_parts_are_called() -> None:
    """Subclasses and hooks, whether there is a kernel or not."""
    h = HyenaFilter(4, 20, window=Rising(4)).double()
    features, t = h.encoding(20, CPU, torch.float64)
    torch.testing.assert_close(h(20)[0], h.ffn(features) * h.window(t))
    h = HyenaFilter(4, 20, dtype=torch.float64)
    want = h(20)
    handle = h.ffn.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(h(20), 2 * want)
    handle.remove()
    torch.testing.assert_close(h(20), want)


def test_state_does_not_grow_with_l_max() -> None:
    small, large = HyenaFilter(4, 20), HyenaFilter(4, 20_000)
    large.load_state_dict(small.state_dict())
    assert sum(t.numel() for t in large.state_dict().values()) < 20_000


def test_meta_device() -> None:
    h = HyenaFilter(4, 20, device=torch.device("meta"))
    assert all(t.is_meta for t in h.state_dict().values())
    h = h.to_empty(device="cpu")
    for t in h.state_dict().values():
        t.fill_(torch.nan)
    h.reset_parameters()
    assert h(20).isfinite().all()
    torch.testing.assert_close(h(20).square().sum(1), torch.ones(1, 4), rtol=1e-3, atol=0)
    torch.testing.assert_close(h.window.deltas, HyenaFilter(4, 20).window.deltas)


class Ramp(nn.Module):
    """Any module from time to weights can be a window."""

    def forward(self, t: Tensor) -> Tensor:
        return (1 - t)[:, None]


def test_parts_can_be_replaced() -> None:
    encoding, ffn = LearnedEncoding(5, 20), nn.Linear(5, 4)
    h = HyenaFilter(4, 20, encoding=encoding, ffn=ffn, window=Ramp())
    torch.testing.assert_close(h(20)[0], ffn(encoding.table) * (1 - torch.arange(20) / 19)[:, None])
    weight = ffn.weight.clone()
    torch.testing.assert_close(ffn.weight, weight)
    h.reset_parameters()
    assert not torch.equal(ffn.weight, weight)


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"a filter of 21 taps is longer than this one's l_max=20"):
        HyenaFilter(4, 20)(21)
    with pytest.raises(ValueError, match=r"got 0, 20, 1"):
        HyenaFilter(0, 20)
    with pytest.raises(ValueError, match=r"got 4, 0, 1"):
        HyenaFilter(4, 0)
    with pytest.raises(ValueError, match=r"got 4, 20, 0"):
        HyenaFilter(4, 20, 0)
    with pytest.raises(ValueError, match=r"got 6"):
        HyenaFilter(4, 20, emb_dim=6)
    with pytest.raises(TypeError, match="num_inner_mlps"):
        HyenaFilter(4, 20, num_inner_mlps=2)


def test_repr_says_what_it_is() -> None:
    text = repr(HyenaFilter(4, 20, 2, causal=False))
    for part in ("channels=4", "l_max=20", "num_filters=2", "causal=False", "emb_dim=33", "freq=1.61", "shift=0.0"):
        assert part in text
