"""The spectra an operator keeps in eval mode: used when they may be, and never stale."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hyena import HyenaFilter, HyenaOperator
from hyena.conv.cache import SpectrumCache, may_cache
from hyena.filters import ExponentialWindow

# Lengths that each Counting filter was asked for. Not in the filter: an attribute that changes is a change of it.
ASKED: dict[int, list[int]] = {}


class Counting(HyenaFilter):
    """A filter that counts how often it was generated."""

    @property
    def asked(self) -> list[int]:
        return ASKED.setdefault(id(self), [])

    @property
    def calls(self) -> int:
        return len(self.asked)

    def forward(self, length: int) -> Tensor:
        self.asked.append(length)
        return super().forward(length)


def operator(**settings: object) -> tuple[HyenaOperator, Counting]:
    counting = Counting(8, 200)
    counting.asked.clear()
    return HyenaOperator(8, 200, filter=counting, **settings), counting


def fresh(m: HyenaOperator, x: Tensor) -> Tensor:
    """What ``m`` computes without a cache: with gradients enabled none is used."""
    with torch.enable_grad():
        return m(x).detach()


def test_one_filter_for_a_training_forward() -> None:
    m, counting = operator()
    for length in (5, 64, 5):
        m(torch.randn(2, length, 8)).sum().backward()
    assert counting.calls == 3
    assert len(m.conv._spectra) == 0
    assert counting.ffn.out.weight.grad.abs().sum() > 0


def test_one_filter_for_each_transform_length_in_eval() -> None:
    m, counting = operator()
    m.eval()
    with torch.no_grad():
        for length in (30, 30, 30, 190, 30, 181, 192):
            x = torch.randn(2, length, 8)
            torch.testing.assert_close(m(x), fresh(m, x))
            counting.asked.pop()
    assert counting.calls == 2


def test_eval_with_gradients_enabled_trains_the_filter() -> None:
    m, counting = operator()
    m.eval()
    x = torch.randn(2, 9, 8)
    with torch.no_grad():
        m(x)
    m(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in counting.parameters())


def test_a_frozen_filter_is_cached_with_gradients_enabled() -> None:
    """Fine-tuning with the filter frozen: the input's gradient is right, and the filter is generated once."""
    m, counting = operator()
    m.eval()
    x = torch.randn(2, 9, 8, requires_grad=True)
    (want,) = torch.autograd.grad(m(x).square().sum(), x)
    counting.requires_grad_(False)
    counting.asked.clear()
    for _ in range(2):
        (got,) = torch.autograd.grad(m(x).square().sum(), x)
        torch.testing.assert_close(got, want)
    assert counting.calls == 1


def step(m: HyenaOperator) -> None:
    with torch.enable_grad():
        m(torch.randn(2, 9, 8).to(m.short.bias)).square().sum().backward()
    torch.optim.AdamW(m.parameters(), lr=0.1).step()


def fused_step(m: HyenaOperator) -> None:
    with torch.enable_grad():
        m(torch.randn(2, 9, 8).to(m.short.bias)).square().sum().backward()
    torch.optim.AdamW(m.parameters(), lr=0.1, fused=True).step()


def through_data(m: HyenaOperator) -> None:
    for p in m.conv.filter.parameters():
        p.data.copy_(torch.randn_like(p))


def in_place(m: HyenaOperator) -> None:
    m.conv.filter.ffn.out.weight.mul_(2)


def numpy(m: HyenaOperator) -> None:
    weight = m.conv.filter.ffn.out.weight
    if weight.device.type == "cpu":
        weight.detach().numpy()[:] *= 2
    else:
        weight.mul_(2)


def load(m: HyenaOperator) -> None:
    m.load_state_dict(HyenaOperator(8, 200).state_dict())


def assign(m: HyenaOperator) -> None:
    m.load_state_dict(HyenaOperator(8, 200, device=m.short.bias.device).state_dict(), assign=True)


def replace(m: HyenaOperator) -> None:
    m.conv.filter.ffn.out.weight = nn.Parameter(torch.randn_like(m.conv.filter.ffn.out.weight))


def buffer(m: HyenaOperator) -> None:
    m.conv.filter.window.deltas.mul_(2)


def reset(m: HyenaOperator) -> None:
    m.reset_parameters()


def double(m: HyenaOperator) -> None:
    m.double().float()


def half(m: HyenaOperator) -> None:
    m.bfloat16().float()


def new_filter(m: HyenaOperator) -> None:
    m.conv.filter = HyenaFilter(8, 200, device=m.short.bias.device)


def window_shift(m: HyenaOperator) -> None:
    m.conv.filter.window = ExponentialWindow(8, slow_decay_pct=3.0, device=m.short.bias.device)


def longer_time(m: HyenaOperator) -> None:
    m.conv.filter.extend(400, "stretch")


def attribute(m: HyenaOperator) -> None:
    m.conv.filter.window.shift = 0.5


def swap_tensors(m: HyenaOperator) -> None:
    torch.utils.swap_tensors(m.conv.filter.ffn.out.weight, nn.Parameter(torch.randn_like(m.conv.filter.ffn.out.weight)))


def hook(m: HyenaOperator) -> None:
    m.conv.filter.register_forward_hook(lambda module, args, h: 2 * h)


def hook_of_a_part(m: HyenaOperator) -> None:
    m.conv.filter.ffn.out.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def replaced_forward(m: HyenaOperator) -> None:
    forward = m.conv.filter.window.forward
    m.conv.filter.window.forward = lambda t: 2 * forward(t)


def parametrised(m: HyenaOperator) -> None:
    parametrizations.weight_norm(m.conv.filter.ffn.out).parametrizations.weight.original0.mul_(2)


def unit_of_time(m: HyenaOperator) -> None:
    m.conv.filter.encoding.time_unit.fill_(100)


CHANGES = [
    step,
    fused_step,
    through_data,
    in_place,
    numpy,
    load,
    assign,
    replace,
    buffer,
    reset,
    double,
    half,
    new_filter,
    window_shift,
    swap_tensors,
    longer_time,
    attribute,
    hook,
    hook_of_a_part,
    replaced_forward,
    parametrised,
    unit_of_time,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_never_stale(change: Callable[[HyenaOperator], None], mode: Callable, device: str) -> None:
    """Whatever happens to the weights, the next call sees it."""
    m = HyenaOperator(8, 200, device=device).eval()
    x = torch.randn(2, 20, 8, device=device)
    with mode():
        before = m(x)
    with torch.no_grad():
        change(m)
        if device != "cpu" and change is through_data:
            m.clear_cache()  # the one thing that is not seen there
    with mode():
        after = m(x)
    torch.testing.assert_close(after, fresh(m, x), rtol=1e-4, atol=1e-5)
    if change not in (double,):
        assert not torch.equal(before, after)


def test_double_is_computed_in_double() -> None:
    m = HyenaOperator(8, 200).eval()
    x = torch.randn(2, 20, 8)
    with torch.no_grad():
        m(x)
        m.double()
        torch.testing.assert_close(m(x.double()), fresh(m, x.double()), rtol=1e-13, atol=1e-13)


def test_train_and_eval_forget() -> None:
    m = HyenaOperator(8, 200).eval()
    with torch.no_grad():
        m(torch.randn(1, 20, 8))
        assert len(m.conv._spectra) == 1
        m.train()
        assert len(m.conv._spectra) == 0
        m(torch.randn(1, 20, 8))
        assert len(m.conv._spectra) == 0
        m.eval()
        m(torch.randn(1, 20, 8))
        m.clear_cache()
    assert len(m.conv._spectra) == 0


def test_inference_mode_first_and_gradients_after() -> None:
    """Spectra made in inference mode serve autograd later."""
    m = HyenaOperator(8, 200).eval()
    m.conv.filter.requires_grad_(False)
    x = torch.randn(2, 20, 8)
    with torch.inference_mode():
        want = m(x)
    y = m(x.requires_grad_())
    y.sum().backward()
    torch.testing.assert_close(y, want)
    assert x.grad.isfinite().all()


def test_copies_and_files_hold_no_spectra() -> None:
    m = HyenaOperator(8, 200).eval()
    x = torch.randn(2, 20, 8)
    keys = list(m.state_dict())
    with torch.no_grad():
        want = m(x)
        assert list(m.state_dict()) == keys
        assert not any("spectr" in key for key in keys)
        file = io.BytesIO()
        torch.save(m, file)
        file.seek(0)
        for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), torch.load(file, weights_only=False)):
            assert len(other.conv._spectra) == 0
            assert torch.equal(other(x), want)
            other.conv.filter.ffn.out.weight.mul_(2)
            assert not torch.equal(other(x), want)
        assert torch.equal(m(x), want)


def test_functional_call_sees_the_weights_it_is_given() -> None:
    m = HyenaOperator(8, 200).eval()
    x = torch.randn(2, 20, 8)
    other = {name: p * 1.5 for name, p in m.named_parameters()}
    with torch.no_grad():
        want = m(x)
        changed = torch.func.functional_call(m, other, (x,))
        assert not torch.allclose(changed, want)
        assert torch.equal(m(x), want)
    leaves = {name: p.detach().requires_grad_() for name, p in other.items()}
    torch.func.functional_call(m, leaves, (x,)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in leaves.values())
    assert leaves["conv.filter.ffn.out.weight"].grad.abs().sum() > 0
    assert all(p.grad is None for p in m.parameters())


def test_the_cache_is_small() -> None:
    cache, source = SpectrumCache(), nn.Linear(2, 2)
    for size in range(20):
        assert cache.get(source, size, lambda size=size: torch.full((1,), float(size))) == size
    assert len(cache) == 4
    assert cache.get(source, 19, lambda: torch.zeros(1)) == 19
    assert cache.get(source, 3, lambda: torch.zeros(1)) == 0


def test_when_a_spectrum_may_be_kept() -> None:
    source = HyenaFilter(4, 20)
    assert not may_cache(source)
    source.eval()
    assert not may_cache(source)
    with torch.no_grad():
        assert may_cache(source)
        source.depends_on_length = True
        assert not may_cache(source)
        del source.depends_on_length
        source.train()
        assert not may_cache(source)
    source.eval().requires_grad_(False)
    assert may_cache(source)


def test_threads_may_share_a_module() -> None:
    m = HyenaOperator(8, 2000).eval()
    lengths = [40 * k for k in range(1, 50)]
    rows = [torch.randn(1, length, 8) for length in lengths]
    want = [fresh(m, x) for x in rows]

    def work(offset: int) -> None:
        with torch.no_grad():
            for i in range(len(rows)):
                at = (i + offset) % len(rows)
                torch.testing.assert_close(m(rows[at]), want[at])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_data_parallel_copies_keep_nothing() -> None:
    """They list no weights, and share the original's attributes."""
    source = HyenaFilter(8, 20).eval()
    copy = source._replicate_for_data_parallel()
    with torch.no_grad():
        assert may_cache(source)
        assert not may_cache(copy)


class Normalised(HyenaFilter):
    """Taps that depend on how many there are."""

    depends_on_length = True

    def forward(self, length: int) -> Tensor:
        h = super().forward(length)
        return h / h.abs().sum(1, keepdim=True)


def test_filters_that_depend_on_the_length_are_generated_for_it() -> None:
    m = HyenaOperator(8, 200, filter=Normalised(8, 200)).eval()
    with torch.no_grad():
        for length in (181, 190):
            x = torch.randn(1, length, 8)
            torch.testing.assert_close(m(x), fresh(m, x))
