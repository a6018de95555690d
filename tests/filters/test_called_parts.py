"""Whatever is done to a filter's parts acts on its taps: the fused op only ever replaces plain modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

import hyena
from hyena import HyenaFilter, ops
from hyena.filters import ExponentialWindow, PositionalEncoding, SineFFN
from hyena.filters.ffn import FilterLinear


class Twice(nn.Module):
    """A parametrisation, or a layer around another."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = nn.Identity() if inner is None else inner

    def forward(self, *args: Tensor) -> Tensor:
        return 2 * self.inner(*args)


class Half(torch.Tensor):
    """A weight that computes something else, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return 0.5 * out if func is torch.nn.functional.linear else out


def twice(forward: Callable) -> Callable:
    return lambda *args: 2 * forward(*args)


def hook(part: nn.Module) -> None:
    part.register_forward_hook(lambda module, args, out: 2 * out)


def pre_hook(part: nn.Module) -> None:
    part.register_forward_pre_hook(lambda module, args: tuple(1.5 * a for a in args))


def replaced_forward(part: nn.Module) -> None:
    part.forward = twice(part.forward)


def parametrisation(part: nn.Module) -> None:
    name = next(name for name, _ in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)])
    register_parametrization(part, name, Twice())


def subclass(part: nn.Module) -> None:
    part.__class__ = type(
        "Mine", (type(part),), {"forward": lambda self, *args: 2 * super(type(self), self).forward(*args)}
    )


def pruned(part: nn.Module) -> None:
    name = "weight" if hasattr(part, "weight") else "freq"
    prune.random_unstructured(part, name, 0.5)


def spectral_norm(part: nn.Module) -> None:
    parametrizations.spectral_norm(part)


def old_spectral_norm(part: nn.Module) -> None:
    nn.utils.spectral_norm(part)


def weight_norm(part: nn.Module) -> None:
    parametrizations.weight_norm(part)
    with torch.no_grad():
        part.parametrizations.weight.original0.mul_(2)


def weight_subclass(part: nn.Module) -> None:
    part._parameters["weight"] = part.weight.detach().as_subclass(Half)


def new_bias(part: nn.Module) -> None:
    part.bias = nn.Parameter(torch.ones(part.out_features)) if part.bias is None else None


ANY = [hook, replaced_forward, subclass]
LINEAR = [
    *ANY,
    pre_hook,
    parametrisation,
    pruned,
    spectral_norm,
    old_spectral_norm,
    weight_norm,
    weight_subclass,
    new_bias,
]
CASES = [
    *[(part, change) for part in ("ffn.hidden.0", "ffn.hidden.2", "ffn.out") for change in LINEAR],
    *[("ffn", change) for change in (*ANY, pre_hook, parametrisation, pruned)],
    *[("window", change) for change in (*ANY, pre_hook, parametrisation)],
]


def modules_alone(h: nn.Module, length: int) -> Tensor:
    with ops.fallback_only():
        return h(length)


@pytest.mark.parametrize(("part", "change"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_changed_part_is_called(part: str, change: Callable[[nn.Module], None]) -> None:
    h = HyenaFilter(4, 20, 2, dtype=torch.float64)
    with torch.no_grad():
        before = h(20)
    change(h.get_submodule(part))
    h.eval()
    with torch.no_grad():
        torch.testing.assert_close(h(20), modules_alone(h, 20))
        assert not torch.allclose(h(20), before, rtol=1e-2)


@pytest.mark.parametrize("kind", [FilterLinear, SineFFN, ExponentialWindow, PositionalEncoding])
def test_a_forward_replaced_on_the_class(kind: type[nn.Module]) -> None:
    h = HyenaFilter(4, 20, dtype=torch.float64)
    before = h(20)
    original = kind.forward

    def double(*args: object) -> object:
        out = original(*args)
        return tuple(2 * o for o in out) if isinstance(out, tuple) else 2 * out

    with mock.patch.object(kind, "forward", double):
        assert not torch.allclose(h(20), before, rtol=1e-2)
        torch.testing.assert_close(h(20), modules_alone(h, 20))
    assert torch.equal(h(20), before)


def test_global_hooks_see_every_part() -> None:
    h, seen = HyenaFilter(4, 20), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        h(20)
    finally:
        handle.remove()
    assert {id(m) for m in h.modules() if not isinstance(m, nn.ModuleList)} == {id(m) for m in seen}


def test_spectral_norm_trains() -> None:
    h = HyenaFilter(4, 20)
    spectral_norm(h.ffn.out)
    h(20).square().sum().backward()
    assert h.ffn.out.parametrizations.weight.original.grad.abs().sum() > 0


def test_lora_acts_trains_and_merges() -> None:
    peft = pytest.importorskip("peft")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = hyena.HyenaOperator(8, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x)

    x, model = torch.randn(1, 40, 8), Model().eval()
    with torch.no_grad():
        before = model(x)
    targets = ["hidden.0", "hidden.2", "out"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False)).eval()
    with torch.no_grad():
        changed = adapted(x)
    assert not torch.allclose(changed, before, rtol=1e-2)
    adapted(x).square().sum().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert sum("filter.ffn" in name for name in adapters) == 6
    assert all(p.grad.abs().sum() > 0 for p in adapters.values())
    with torch.no_grad(), adapted.disable_adapter():
        torch.testing.assert_close(adapted(x), before)
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(x), changed, rtol=1e-4, atol=1e-5)


def test_offloaded_weights_are_loaded_first() -> None:
    accelerate = pytest.importorskip("accelerate")
    h = HyenaFilter(4, 20, dtype=torch.float64).eval()
    with torch.no_grad():
        want = h(20)
        offloaded = accelerate.cpu_offload(copy.deepcopy(h), execution_device=torch.device("cpu"))
        assert offloaded.ffn.out.weight.is_meta
        torch.testing.assert_close(offloaded(20), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantisation_leaves_filters_alone() -> None:
    """torch.ao takes ``nn.Linear`` by class, torchao's ``quantize_`` every instance that is not marked against it."""
    h = HyenaFilter(4, 20).eval()
    want = h(20)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(h), {nn.Linear}, dtype=torch.qint8)
    assert torch.equal(quantised(20), want)
    marked = nn.modules.linear.NonDynamicallyQuantizableLinear
    assert all(isinstance(m, marked) for m in h.modules() if isinstance(m, nn.Linear))
    assert sum(isinstance(m, nn.Linear) for m in h.modules()) == 4


def test_torchao_leaves_filters_alone() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    op = hyena.HyenaOperator(64, 40).eval()
    want = op.conv.filter(40)
    torchao.quantize_(op, torchao.Int8WeightOnlyConfig())
    assert type(op.in_proj.weight) is not nn.Parameter
    assert torch.equal(op.conv.filter(40), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_quantised_on_purpose_are_called() -> None:
    h = HyenaFilter(4, 20).eval()
    want = h(20)
    weight = h.ffn.out.weight.detach()
    h.ffn.out = torch.ao.nn.quantized.dynamic.Linear(64, 4, bias_=False)
    scale = float(weight.abs().max()) / 127
    h.ffn.out.set_weight_bias(torch.quantize_per_tensor(weight, scale, 0, torch.qint8), None)
    error = (h(20) - want).norm() / want.norm()
    assert 1e-4 < error < 0.5


def test_plain_modules_are_fused() -> None:
    """None of the above costs the usual filter its kernel."""
    if not ops.has_kernel("implicit_filter", torch.device("cpu")):
        pytest.skip("no kernels here")
    h = HyenaFilter(4, 20)
    with mock.patch.object(SineFFN, "__call__", side_effect=AssertionError("called")):
        h(20)
