"""What the operator computes: the oracle, padding, packed rows, dtypes, and its errors."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.cases import LAYOUTS, laid_out, make_mask, offsets, rand
from helpers.operators import CONFIGS, L_MAX, D, build, expected
from hyena import HyenaFilter, HyenaOperator
from hyena.checkpoints.safari.blocks import SafariOperator

CONFIG = pytest.mark.parametrize("config", CONFIGS)
WITHOUT_BLOCKS = pytest.mark.parametrize("config", [name for name in CONFIGS if name != "blocks"])
# Of results of order 1, after the projections: some eps.
CLOSE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
}


@CONFIG
@pytest.mark.parametrize("mask", ["none", "random"])
def test_output_and_every_gradient(config: str, mask: str) -> None:
    m, u, keep = build(config).double(), rand(2, 22, D).requires_grad_(), make_mask(mask, 2, 22)
    dy = rand(2, 22, D, seed=1)
    inputs = {"u": u, **dict(m.named_parameters())}
    y, want = m(u, keep), expected(m, u, keep)
    torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-11)
    got = torch.autograd.grad(y, list(inputs.values()), dy, allow_unused=True)
    gradients = torch.autograd.grad(want, list(inputs.values()), dy, allow_unused=True)
    for name, g, w in zip(inputs, got, gradients, strict=True):
        if inputs[name].numel() > 0:  # order 1 has no filter bias
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "two-sided"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 63, 64, 65, 127, 1009, 4096, 8209])
def test_any_length(length: int, causal: bool, device: str) -> None:
    m = HyenaOperator(2, 8209, causal=causal, filter=partial(HyenaFilter, width=8, emb_dim=5), dtype=torch.float64)
    u = rand(1, length, 2)
    with torch.no_grad():
        want = expected(m, u)
    for dtype in (torch.float64, torch.float32):
        moved = copy.deepcopy(m).to(device, dtype)
        y = moved(u.to(device, dtype))
        torch.testing.assert_close(y.cpu().double(), want, rtol=0, atol=1e-11 if dtype == torch.float64 else 1e-4)
        y.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in moved.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_in_any_memory_order(layout: str) -> None:
    m, u = build("default").double(), rand(3, 22, D)
    if layout == "expanded":
        u = laid_out(u, layout)
    torch.testing.assert_close(m(laid_out(u, layout)), expected(m, u), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (0, 7)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    for width in (1, 3):
        m = HyenaOperator(width, 7).double()
        u = rand(*shape, width).requires_grad_()
        y = m(u)
        torch.testing.assert_close(y, expected(m, u), rtol=1e-11, atol=1e-11)
        y.sum().backward()
        assert u.grad.shape == u.shape


@CONFIG
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_modules(config: str, dtype: torch.dtype, device: str) -> None:
    """Weights in half precision give what the same weights give in float64, to the dtype's rounding."""
    m = build(config).to(dtype)
    u = rand(2, 22, D)
    want = expected(copy.deepcopy(m).double(), u)
    m = m.to(device)
    y = m(u.to(device, dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.cpu().double(), want, **CLOSE[dtype])
    y.float().square().sum().backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in m.parameters())


@CONFIG
def test_autocast(config: str, device: str) -> None:
    m = build(config).to(device)
    u = rand(2, 22, D).float().to(device)
    want = m(u)
    with torch.autocast(device, torch.bfloat16):
        y = m(u)
        eval_y = copy.deepcopy(m).eval()(u)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), want, **CLOSE[torch.bfloat16])
    torch.testing.assert_close(eval_y, y, **CLOSE[torch.bfloat16])
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in m.parameters())


@WITHOUT_BLOCKS
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_padding_changes_nothing(config: str, side: str, dtype: torch.dtype, device: str) -> None:
    """Each row of a padded batch, and of a batch of one, is what it is alone, its gradients included."""
    m = build(config).to(device, dtype)
    lengths = [20, 13, 1]
    rows = [rand(1, n, D, seed=n).to(device, dtype).requires_grad_() for n in lengths]
    padded, keep = torch.full((3, 20, D), 7.0, device=device, dtype=dtype), torch.zeros(3, 20, dtype=torch.bool)
    at = [slice(20 - n, 20) if side == "left" else slice(0, n) for n in lengths]
    for i, row in enumerate(rows):
        padded[i, at[i]], keep[i, at[i]] = row.detach()[0], True
    padded, keep = padded.requires_grad_(), keep.to(device)
    together = m(padded, keep)
    (g,) = torch.autograd.grad(together[keep].float().square().sum(), padded)
    assert not g[~keep].any()
    for i, row in enumerate(rows):
        alone = m(row)
        torch.testing.assert_close(together[i, at[i]], alone[0], **CLOSE[dtype])
        (want,) = torch.autograd.grad(alone.float().square().sum(), row)
        torch.testing.assert_close(g[i, at[i]] / want.abs().max(), want[0] / want.abs().max(), **CLOSE[dtype])
        one = m(padded[i : i + 1], keep[i : i + 1])
        torch.testing.assert_close(one[0, at[i]], alone[0], **CLOSE[dtype])


@WITHOUT_BLOCKS
def test_weights_learn_nothing_from_padding(config: str) -> None:
    m, row = build(config).double(), rand(1, 13, D)
    padded = torch.cat([row, rand(1, 7, D, seed=1)], dim=1)
    keep = torch.arange(20)[None] < 13
    found = torch.autograd.grad(m(padded, keep)[keep].square().sum(), list(m.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(m(row).square().sum(), list(m.parameters()), allow_unused=True)
    for (name, _), g, w in zip(m.named_parameters(), found, wanted, strict=True):
        if w is not None:
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_hidden_positions_come_out_as_the_output_bias() -> None:
    m = build("default")
    keep = torch.tensor([[True] * 5 + [False] * 4, [False] * 9])
    u = rand(2, 9, D).float()
    u[~keep] = torch.nan
    y = m(u, keep)
    torch.testing.assert_close(y[~keep], m.out_proj.bias.expand(13, -1))
    assert y.isfinite().all()


@WITHOUT_BLOCKS
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_packed_rows_do_not_see_each_other(config: str, mode: str, device: str) -> None:
    m = build(config).to(device).double().train(mode == "train")
    sizes = [5, 0, 17, 1, 0]
    u = rand(1, 23, D).to(device).requires_grad_()
    at = offsets(sizes).to(device)
    want = torch.cat([m(part) for part in u.split([n for n in sizes if n], dim=1)], dim=1)
    for y in (
        m(u, cu_seqlens=at),
        m(u, cu_seqlens=at.long(), max_seqlen=17),
        m(u[0], cu_seqlens=at, max_seqlen=40)[None],
    ):
        torch.testing.assert_close(y, want, **CLOSE[torch.float64])
    (g,) = torch.autograd.grad(m(u, cu_seqlens=at)[:, 5:22].square().sum(), u)
    assert not g[:, :5].any()
    assert not g[:, 22:].any()


def test_packed_rows_with_a_mask() -> None:
    m, u, at = build("default").double(), rand(1, 23, D), offsets([5, 17, 1])
    keep = make_mask("random", 1, 23)
    want = [m(u[:, a:b], keep[:, a:b]) for a, b in ((0, 5), (5, 22), (22, 23))]
    torch.testing.assert_close(m(u, keep, at), torch.cat(want, dim=1), **CLOSE[torch.float64])


def test_a_packed_row_may_be_longer_than_l_max_together() -> None:
    m = HyenaOperator(D, 10).double()
    u = rand(1, 25, D)
    want = torch.cat([m(part) for part in u.split([10, 10, 5], dim=1)], dim=1)
    torch.testing.assert_close(m(u, cu_seqlens=offsets([10, 10, 5])), want, **CLOSE[torch.float64])
    with pytest.raises(ValueError, match=r"a row of 14 positions is longer than this HyenaOperator's l_max=10"):
        m(u, cu_seqlens=offsets([11, 14]))
    with pytest.raises(ValueError, match=r"a row of 14 positions, more than the 10 .* pass max_seqlen=14"):
        m(u, cu_seqlens=offsets([11, 14]), max_seqlen=10)


def test_dropout_is_off_in_eval_and_unbiased_in_training() -> None:
    plain, u = build("default"), rand(1, 9, D).float()
    m = HyenaOperator(D, L_MAX, dropout=0.5)
    m.load_state_dict(plain.state_dict())
    torch.testing.assert_close(m.eval()(u), plain(u))
    m.train()
    with torch.no_grad():
        first, second = m(u), m(u)
        assert not torch.allclose(first, second)
        mean = m(u.expand(4000, -1, -1)).mean(0, keepdim=True)
        torch.testing.assert_close(mean, plain(u), rtol=0, atol=0.1)


def test_a_filter_of_your_own() -> None:
    class Table(nn.Module):
        def __init__(self, filters: int, l_max: int, channels: int) -> None:
            super().__init__()
            self.taps = nn.Parameter(torch.randn(filters, l_max, channels))

        def forward(self, length: int) -> Tensor:
            return self.taps[:, :length]

    m = HyenaOperator(D, L_MAX, order=3, filter=Table(2, L_MAX, D)).double()
    u = rand(2, 22, D)
    y = m(u)
    torch.testing.assert_close(y, expected(m, u), **CLOSE[torch.float64])
    y.sum().backward()
    assert m.conv.filter.taps.grad[:, :22].abs().min() > 0
    assert not m.conv.filter.taps.grad[:, 22:].any()
    with torch.no_grad():
        torch.testing.assert_close(m.eval()(u), y)
    m = HyenaOperator(D, L_MAX, filter=Table(2, L_MAX, D))
    with pytest.raises(ValueError, match=r"returned taps of shape \(2, 22, 8\), and \(1, 22, 8\) are needed"):
        m(u.float())


def _three(*sizes: int, **options: Any) -> int:
    return 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"d_model": 0}, "d_model must be at least 1, got 0"),
    ({"l_max": 0}, "l_max must be at least 1, got 0"),
    ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
    ({"short_taps": 0}, "short_taps must be at least 1, got 0"),
    ({"inner_factor": 0}, "inner_factor must be at least 1, got 0"),
    ({"order": 0}, "order must be at least 1, got 0"),
    ({"order": 9}, "order must be 1 to 8, got 9"),
    ({"dropout": 1.0}, "dropout must be a number in [0, 1), got 1.0"),
    ({"dropout": -0.1}, "dropout must be a number in [0, 1), got -0.1"),
    ({"num_heads": 3}, "the width 8 is not a multiple of num_heads=3"),
    ({"filter_groups": 3}, "the width 8 is not a multiple of filter_groups=3"),
    ({"filter_groups": 0}, "filter_groups must be at least 1, got 0"),
    ({"filter_groups": 2, "num_heads": 2}, "num_heads=2 already ties filters in heads; leave filter_groups=2 out"),
    ({"activation": "swish"}, "got 'swish'"),
    ({"filter": partial(HyenaFilter, emb_dim=4)}, "got 4"),
    ({"filter": None}, "filter must be a module, or a class"),
    ({"filter": "S4D"}, "filter must be a module, or a class"),
    ({"filter": _three}, "made a int"),
]


@pytest.mark.parametrize(
    ("settings", "message"), BAD, ids=[str(settings).partition(" at 0x")[0] for settings, _ in BAD]
)
def test_constructor_errors_name_the_numbers(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HyenaOperator(**{"d_model": D, "l_max": L_MAX, **settings})


WRONG_TYPES: list[dict[str, Any]] = [
    {"d_model": 8.0},
    {"l_max": 64.0},
    {"l_max": "64"},
    {"l_max": True},
    {"order": 2.0},
    {"num_heads": 1.0},
    {"short_taps": 3.0},
    {"inner_factor": 1.5},
    {"filter_groups": 2.0},
    {"causal": "yes"},
    {"causal": 1},
    {"causal": None},
    {"value_filter": "no"},
    {"bias": 0},
]


@pytest.mark.parametrize("settings", WRONG_TYPES, ids=str)
def test_arguments_of_another_type_raise(settings: dict[str, Any]) -> None:
    (name, value) = next(iter(settings.items()))
    with pytest.raises(TypeError, match=re.escape(name) + ".*" + re.escape(repr(value))):
        HyenaOperator(**{"d_model": D, "l_max": L_MAX, **settings})


def test_dropout_that_would_drop_nothing() -> None:
    for value_filter in (False, True):
        with pytest.raises(ValueError, match=r"dropout=0.5 drops products .* of which order=1 has none"):
            HyenaOperator(D, L_MAX, order=1, value_filter=value_filter, dropout=0.5)


def test_lengths_are_checked_where_there_is_no_filter() -> None:
    m = HyenaOperator(D, L_MAX, order=1)
    for wrong, error in (("x", TypeError), (None, TypeError), (0, ValueError), (-1, ValueError)):
        with pytest.raises(error, match=f"l_max .*got {wrong!r}"):
            m.extend(wrong)
    with pytest.raises(ValueError, match=r"mode must be one of .*, got 'foo'"):
        m.extend(2 * L_MAX, mode="foo")
    assert m.l_max == L_MAX


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_blocks": 0}, "num_blocks must be at least 1, got 0"), ({"num_blocks": 5}, "multiple of num_blocks=5")],
)
def test_blocks_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SafariOperator(D, L_MAX, **settings)


def test_input_errors_name_the_numbers() -> None:
    m, u = build("default"), torch.zeros(2, 22, D)
    with pytest.raises(ValueError, match=r"a row of 97 positions is longer than this HyenaOperator's l_max=96; extend"):
        m(torch.zeros(2, 97, D))
    with pytest.raises(ValueError, match=r"expected an input of shape \(B, L, 8\), got \(2, 22, 7\)"):
        m(torch.zeros(2, 22, 7))
    with pytest.raises(ValueError, match=r"expected an input of shape \(B, L, 8\), got \(22, 8\)"):
        m(u[0])
    with pytest.raises(ValueError, match=r"at least one position, got length=0"):
        m(torch.zeros(2, 0, D))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(2, 22\).*\(2, 21\)"):
        m(u, torch.ones(2, 21, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor .* got torch.int64"):
        m(u, torch.ones(2, 22, dtype=torch.long))
    with pytest.raises(ValueError, match=r"got batch 2 with cu_seqlens"):
        m(u, cu_seqlens=offsets([22]))
    with pytest.raises(ValueError, match=r"rise from 0 to the packed length 22, got \[0, 21\]"):
        m(u[:1], cu_seqlens=offsets([21]))
    with pytest.raises(ValueError, match=r"1-D int32 or int64 .* got torch.float32"):
        m(u[:1], cu_seqlens=torch.tensor([0.0, 22.0]))
    blocks = build("blocks")
    with pytest.raises(ValueError, match=r"23 positions cannot be cut into num_blocks=2 equal blocks"):
        blocks(torch.zeros(2, 23, D))
    with pytest.raises(ValueError, match=r"packed rows cannot be cut into num_blocks=2 equal blocks"):
        blocks(u[:1], cu_seqlens=offsets([22]))


def test_unknown_keywords_raise() -> None:
    with pytest.raises(TypeError, match="use_flash"):
        HyenaOperator(D, L_MAX, use_flash=True)
    with pytest.raises(TypeError, match="key_padding_mask"):
        build("default")(torch.zeros(1, 5, D), key_padding_mask=None)
