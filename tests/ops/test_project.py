"""``hyena::project``: a linear layer in every respect."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.cases import DTYPES, LAYOUTS, Tier, compare, laid_out, natural_strides, rand, strides
from hyena import ops


def linear(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float64."""
    y = torch.einsum("bld,cd->blc", u.double(), weight.double())
    return y if bias is None else y + bias.double()


def project(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.hyena.project(u, weight, bias)


def channel_major(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.hyena.project_channel_major(u, weight, bias)


def from_channel_major(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.hyena.project_from_channel_major(u, weight, bias)


ALL = pytest.mark.parametrize("op", [project, channel_major, from_channel_major])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS)
@ALL
def test_layouts(tier: Tier, dtype: torch.dtype, bias: bool, layout: str, op: Callable[..., Tensor]) -> None:
    inputs = {"u": rand(3, 17, 5), "weight": rand(9, 5, seed=1), "bias": rand(9, seed=2) if bias else None}
    for dy in LAYOUTS[:3] if layout != "expanded" else ["expanded"]:
        u = laid_out(inputs["u"], layout).to(tier.device, dtype)
        with tier():
            y = op(u, rand(9, 5).to(u))
            assert strides(y) == (
                natural_strides(laid_out(y, "channel_major"), 9) if op is channel_major else strides(y.contiguous())
            )
        compare(op, linear, inputs, laid_out(rand(3, 17, 9), dy), tier, dtype, {"u": layout, "dy": dy}, ordered=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [5, 9, 17, 33, 38])
@ALL
def test_nothing_beside_the_rows_is_read(
    tier: Tier, dtype: torch.dtype, channels: int, op: Callable[..., Tensor]
) -> None:
    """Rows, weights and gradients with NaN between them; torch's bfloat16 products on AMX read some of it."""

    def among_nans(*shape: int) -> Tensor:
        around = torch.full((*shape[:-1], shape[-1] + 4), torch.nan, device=tier.device, dtype=dtype)
        around[..., : shape[-1]] = rand(*shape).to(around)
        return around[..., : shape[-1]]

    for outputs in (32, 33):
        u, weight, dy = among_nans(3, 17, channels), among_nans(outputs, channels), among_nans(3, 17, outputs)
        with tier():
            y = op(u.requires_grad_(), weight.requires_grad_())
            found = (y, *torch.autograd.grad(y, (u, weight), dy))
        for name, got in zip(("y", "du", "dweight"), found, strict=True):
            assert got.isfinite().all(), (name, outputs)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (2, 3000)])
@ALL
def test_shapes(tier: Tier, shape: tuple[int, int], op: Callable[..., Tensor]) -> None:
    """Nothing, next to nothing, and more than a huge page."""
    inputs = {"u": rand(*shape, 4), "weight": rand(192, 4, seed=1), "bias": rand(192, seed=2)}
    compare(op, linear, inputs, rand(*shape, 192), tier, torch.float32, ordered=op is not channel_major)


def test_long_rows_in_channel_major(tier: Tier) -> None:
    """Rows that are multiplied one at a time."""
    inputs = {"u": rand(2, 4100, 4), "weight": rand(6, 4, seed=1), "bias": rand(6, seed=2)}
    where = {"u": "channel_major", "dy": "contiguous"}
    compare(from_channel_major, linear, inputs, rand(2, 4100, 6), tier, torch.float32, where, ordered=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (5, 3), (16, 64), (33, 130), (1600, 70)])
def test_many_rows(tier: Tier, dtype: torch.dtype, channels: int, outputs: int) -> None:
    """Enough for a kernel's own product, whole and incomplete panels, and more inputs than are summed at once."""
    for length in (256, 301):
        inputs = {
            "u": rand(1, length, channels),
            "weight": rand(outputs, channels, seed=1),
            "bias": rand(outputs, seed=2),
        }
        for layout in ("contiguous", "channel_major", "sliced"):
            dy = laid_out(rand(1, length, outputs), layout)
            compare(project, linear, inputs, dy, tier, dtype, {"u": layout, "dy": layout}, ordered=False)


@pytest.mark.parametrize("layout", ["contiguous", "channel_major", "sliced"])
def test_rows_enough_for_a_kernel_on_any_processor(tier: Tier, layout: str) -> None:
    u = laid_out(rand(2, 2049, 900).to(tier.device), layout).float().requires_grad_()
    weight, bias = (rand(*shape, seed=1).float().to(tier.device).requires_grad_() for shape in ((130, 900), (130,)))
    dy = rand(2, 2049, 130, seed=2).float().to(tier.device)
    with tier():
        y = project(u, weight, bias)
        found = (y, *torch.autograd.grad(y, (u, weight, bias), dy))
    want = linear(u, weight, bias)
    exact = (want, *torch.autograd.grad(want, (u, weight, bias), dy.double()))
    for got, w in zip(found, exact, strict=True):
        torch.testing.assert_close(got, w.float(), rtol=1e-5, atol=1e-3)


def test_weights_of_any_strides(tier: Tier) -> None:
    u, weight = rand(1, 300, 9).float().to(tier.device), rand(9, 20).float().to(tier.device)
    with tier():
        torch.testing.assert_close(project(u, weight.t()), u @ weight)
        torch.testing.assert_close(project(u, weight.t()[::2], weight[0, ::2]), u @ weight[:, ::2] + weight[0, ::2])


def test_the_gradient_of_the_weight(tier: Tier) -> None:
    """The op itself, which only some machines use."""
    inputs = {"g": rand(2, 150, 70), "u": rand(2, 150, 35)}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        g, u = (t.to(tier.device, dtype) for t in inputs.values())
        with tier():
            dw, db = torch.ops.hyena.project_backward(g, u)
        want = torch.einsum("bln,blk->nk", inputs["g"], inputs["u"]), inputs["g"].sum((0, 1))
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
        for got, w in zip((dw, db), want, strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got.cpu().double(), w, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("kind", ["around zero", "positive", "constant"])
def test_a_gradient_over_many_rows_is_as_exact_as_one_over_few(tier: Tier, kind: str) -> None:
    """In one chain of 60 thousand terms the sums would be 1.5e-5 to 5e-4 off; torch's are to 2e-6."""
    g, u = (rand(1, 60000, n, seed=n).float().to(tier.device) for n in (18, 35))
    if kind != "around zero":
        g, u = (t.abs() if kind == "positive" else torch.full_like(t, 0.1) for t in (g, u))
    with tier():
        dw, db = torch.ops.hyena.project_backward(g, u)
    want = torch.einsum("bln,blk->nk", g.double(), u.double()), g.double().sum((0, 1))
    terms = torch.einsum("bln,blk->nk", g.double().square(), u.double().square()).sqrt()
    size = terms if kind == "around zero" else want[0]
    assert ((dw.double() - want[0]) / size).abs().max() <= 1e-5
    assert (db.double() - want[1]).abs().max() <= 1e-6 * g.double().abs().sum((0, 1)).max()


@ALL
def test_gradgradcheck(tier: Tier, op: Callable[..., Tensor]) -> None:
    leaves = [t.to(tier.device).requires_grad_() for t in (rand(2, 3, 4), rand(5, 4), rand(5))]
    with tier():
        assert torch.autograd.gradcheck(op, leaves)
        assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("op", ["project", "project_channel_major", "project_from_channel_major"])
def test_opcheck(device: str, bias: bool, op: str) -> None:
    leaves = [t.float().to(device).requires_grad_() for t in (rand(2, 3, 4), rand(5, 4), rand(5))]
    torch.library.opcheck(getattr(torch.ops.hyena, op).default, (*leaves[:2], leaves[2] if bias else None))


class Quantised(Tensor):
    """A weight that knows ``F.linear`` only, as quantisation libraries have it."""

    @classmethod
    def __torch_function__(cls, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is F.linear:
            return F.linear(args[0], args[1].as_subclass(Tensor).round(), *args[2:])
        return super().__torch_function__(func, types, args, kwargs)


def test_weights_of_a_kind_of_their_own() -> None:
    layer, u = nn.Linear(4, 5), rand(2, 3, 4).float()
    want = F.linear(u, layer.weight.round(), layer.bias)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised), requires_grad=False)
    torch.testing.assert_close(ops.project(u, layer), want)


class Doubling(nn.Linear):
    """Somebody's own layer."""

    def forward(self, u: Tensor) -> Tensor:
        return 2 * super().forward(u)


def test_other_layers_hooks_and_autocast_work_as_ever(device: str) -> None:
    layer, u = nn.Linear(4, 5, device=device), rand(2, 3, 4).float().to(device)
    want = F.linear(u, layer.weight, layer.bias)
    torch.testing.assert_close(ops.project(u, layer), want)
    turned = ops.project(u, layer, channel_major=True)
    assert strides(turned) == natural_strides(laid_out(want, "channel_major"), 5)
    torch.testing.assert_close(turned, want)
    with torch.autocast(device, torch.bfloat16):
        assert ops.project(u, layer).dtype == torch.bfloat16
        turned = ops.project(u, layer, channel_major=True)
        assert turned.dtype == torch.bfloat16
        assert strides(turned) == natural_strides(laid_out(want, "channel_major"), 5)
        turned.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(turned.float(), want, rtol=0.05, atol=0.05)
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output) or output + 1)
    torch.testing.assert_close(ops.project(u, layer), want + 1)
    assert len(seen) == 1
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output + 2)
    try:
        torch.testing.assert_close(ops.project(u, layer), want + 2)
    finally:
        handle.remove()
    doubling = Doubling(4, 5, device=device)
    torch.testing.assert_close(ops.project(u, doubling), 2 * F.linear(u, doubling.weight, doubling.bias))
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied"):
        ops.project(u[..., :3], layer)


@pytest.fixture
def slow_products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """As on a processor where torch's matrix products are slow; what is given to the library's own."""
    module = importlib.import_module("hyena.ops.project")
    if not ops.has_kernel("project", torch.device("cpu")):
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(module.EXTENSION, "fast_rows", 256)
    real, seen = module.project, []
    monkeypatch.setattr(module, "project", lambda x, layer: seen.append(x) or real(x, layer))
    return seen


def test_layers_in_models_have_the_fast_product(slow_products: list[Tensor]) -> None:
    layer = nn.Linear(24, 10)
    for shape, own in (
        ((2, 128, 24), True),
        ((1, 255, 24), False),
        ((300, 24), True),
        ((2, 2, 64, 24), True),
        ((24,), False),
    ):
        x = rand(*shape).float().requires_grad_()
        slow_products.clear()
        y = ops.linear(x, layer)
        assert bool(slow_products) == own, shape
        want = x.double() @ layer.weight.double().T + layer.bias.double()
        torch.testing.assert_close(y, want.float())
        dy = torch.randn_like(y)
        inputs = (x, layer.weight, layer.bias)
        for a, b in zip(
            torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy.double()), strict=True
        ):
            torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-4)


def test_what_stands_in_a_layers_place_is_called(slow_products: list[Tensor]) -> None:
    layer, x = Doubling(24, 10), rand(2, 128, 24).float()
    torch.testing.assert_close(ops.linear(x, layer), 2 * F.linear(x, layer.weight, layer.bias))
    plain, shapes = nn.Linear(24, 10), []
    plain.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape) or output + 1)
    for each in (x, x.view(2, 2, 64, 24), x[0, :2], x.flatten(0, 1)):
        torch.testing.assert_close(ops.linear(each, plain), F.linear(each, plain.weight, plain.bias) + 1)
        assert shapes[-1] == each.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, nn.Linear(24, 10)).dtype == torch.bfloat16


def test_traced_layers_are_layers(slow_products: list[Tensor]) -> None:
    """A graph is the same whatever machine traced it."""
    graph = torch.export.export(Through(nn.Linear(24, 10)), (rand(2, 128, 24).float(),)).graph
    assert not slow_products
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.linear.default]


class Through(nn.Module):
    """A layer called through ``ops.linear``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.layer)


def test_the_bias_stays_where_nobody_adds_it(device: str) -> None:
    layer, u = nn.Linear(4, 5, device=device), rand(2, 3, 4).float().to(device)
    z, bias = ops.project_for_mixing(u, layer, 1)
    assert bias is None
    torch.testing.assert_close(z, layer(u))


def test_the_bias_apart(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # ops.project is the function
    monkeypatch.setattr(importlib.import_module("hyena.ops.project"), "is_bias_left", lambda u: True)
    layer, u = nn.Linear(4, 5, device=device), rand(2, 3, 4).float().to(device)
    z, bias = ops.project_for_mixing(u, layer, 1)
    assert strides(z) == natural_strides(laid_out(z, "channel_major"), 5)
    assert bias is layer.bias
    torch.testing.assert_close(z + bias, layer(u))
    with torch.autocast(device, torch.bfloat16):
        z, bias = ops.project_for_mixing(u, layer, 1)
    assert z.dtype == torch.bfloat16
    assert bias is layer.bias  # as exact as it is
    torch.testing.assert_close(z + bias, layer(u), rtol=0.05, atol=0.05)
    assert ops.project_for_mixing(u, nn.Linear(4, 5, bias=False, device=device), 1)[1] is None
    assert ops.project_for_mixing(u, Doubling(4, 5, device=device), 1)[1] is None
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    z, bias = ops.project_for_mixing(u, layer, 1)
    assert bias is None
    torch.testing.assert_close(z, layer(u))


@pytest.mark.parametrize("op", [project, channel_major, from_channel_major])
@pytest.mark.parametrize(("weight", "bias"), [((24, 7), (24,)), ((24, 8), (1,)), ((24, 8), (23,)), ((8,), None)])
def test_weights_that_do_not_fit(op: Callable[..., Tensor], weight: tuple[int, ...], bias: tuple[int, ...]) -> None:
    """However many rows there are; a kernel would read beyond them."""
    for rows in (3, 300):
        with pytest.raises((RuntimeError, ValueError), match=r"weight|bias"):
            op(torch.randn(1, rows, 8), torch.randn(weight), None if bias is None else torch.randn(bias))


@pytest.mark.parametrize("channel_major", [False, True])
@pytest.mark.parametrize(("weight", "bias"), [((24, 7), (24,)), ((24, 8), (23,)), ((8,), (24,))])
def test_a_layer_with_other_weights_raises_as_it_does(
    weight: tuple[int, ...], bias: tuple[int, ...], channel_major: bool
) -> None:
    u = torch.randn(1, 300, 8)
    other = {"weight": torch.randn(weight), "bias": torch.randn(bias)}
    layer = nn.Linear(8, 24)

    def run(u: Tensor) -> Tensor:
        return ops.project(u, layer, channel_major=channel_major)

    layer.weight, layer.bias = (nn.Parameter(t) for t in other.values())
    with pytest.raises(RuntimeError) as found:
        layer(u)
    with pytest.raises(RuntimeError) as ours:
        run(u)
    assert str(ours.value) == str(found.value)


def test_a_layer_whose_weight_has_changed_its_size_is_followed() -> None:
    layer, u = nn.Linear(8, 24), torch.randn(1, 300, 8)
    with torch.no_grad():
        layer.weight, layer.bias = nn.Parameter(layer.weight[:20]), nn.Parameter(layer.bias[:20])
    torch.testing.assert_close(ops.project(u, layer), layer(u))
    layer.bias = nn.Parameter(torch.randn(1))  # which torch spreads over the channels
    torch.testing.assert_close(ops.project(u, layer), layer(u))


@pytest.mark.parametrize("channel_major", [False, True])
def test_padding_reaches_no_gradient(tier: Tier, channel_major: bool) -> None:
    layer, mask = nn.Linear(4, 5).to(tier.device), torch.rand(2, 300, device=tier.device) < 0.7
    found = []
    for value in (0.0, torch.nan):
        u = torch.where(mask[..., None], rand(2, 300, 4).float().to(tier.device), value)
        with tier():
            z = ops.project(u.requires_grad_(), layer, channel_major=channel_major, mask=mask)
            grads = torch.autograd.grad(torch.where(mask[..., None], z, 0).square().sum(), [u, *layer.parameters()])
        found.append([z, *grads])
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)


def test_batched_gradients(device: str) -> None:
    layer, u = nn.Linear(8, 5, device=device), rand(1, 300, 8).float().to(device).requires_grad_()
    y, g = ops.project(u, layer), rand(3, 1, 300, 5, seed=1).float().to(device)
    batched = torch.autograd.grad(y, (u, layer.weight, layer.bias), g, is_grads_batched=True, retain_graph=True)
    for i, each in enumerate(g):
        for all_of_them, one in zip(batched, torch.autograd.grad(y, (u, layer.weight, layer.bias), each, True)):
            torch.testing.assert_close(all_of_them[i], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("extra", [{"mask": torch.ones(2, 300, dtype=torch.bool)}, {"channel_major": True}])
def test_blocks_take_no_other_argument(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 300, 16\) is in channel blocks"):
        ops.project(torch.randn(2, 1, 300, 16), nn.Linear(16, 5), **extra)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_that_may_be_bfloat16_are_torchs(precision: str) -> None:
    """On a CPU; what the layer is called for then, an op is otherwise."""
    layer, u = nn.Linear(16, 48), rand(1, 300, 16).float()
    torch.set_float32_matmul_precision(precision)
    try:
        z, _ = ops.project_for_mixing(u, layer, 16)
        found = [ops.project(u, layer), z, ops.linear(u, layer), ops.linear(u[0], layer)]
        with_torch = torch.equal(ops.project(u, layer), layer(u))
    finally:
        torch.set_float32_matmul_precision("highest")
    names = [y.grad_fn.name() for y in found if y.grad_fn is not None]
    assert any("hyena" in name for name in names) == (precision != "medium"), names
    assert with_torch or precision != "medium"
