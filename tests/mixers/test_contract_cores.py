"""The parts of a mixer that processes mix apart: put together they are the mixer, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from helpers.mixers import CASES, L_MAX, D
from hyena.mixers import Attention, HyenaOperator, Mixer

SPREAD = ["Attention", "H3", "HyenaOperator", "LinearAttention"]


def shares_keys(name: str) -> bool:
    mixer = CASES[name]()
    return isinstance(mixer, Attention) and mixer.num_kv_heads < mixer.num_heads


def in_cores(mixer: Mixer, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, cuts: list[int]) -> Tensor:
    z = mixer.in_proj(u if mask is None else torch.where(mask[..., None], u, 0.0)).unflatten(2, (mixer.parts, -1))
    each, found = z.size(3) // mixer.units, []
    for start, stop in zip([0, *cuts], [*cuts, mixer.units], strict=True):
        part = z[..., start * each : stop * each].flatten(2)
        found.append(mixer.core(range(start, stop))(part, mask, cu_seqlens, L_MAX if cu_seqlens is not None else None))
    return mixer.out_proj(torch.cat(found, dim=2))


@pytest.mark.parametrize("rows", ["plain", "masked", "packed"])
@pytest.mark.parametrize("name", [name for name in CASES if name.split("-")[0] in SPREAD and not shares_keys(name)])
def test_cores_make_the_mixer(name: str, rows: str) -> None:
    torch.manual_seed(0)
    mixer = CASES[name](dtype=torch.float64)
    u = torch.randn(1 if rows == "packed" else 2, 19, D, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(19) >= torch.tensor([[0], [7]]) if rows == "masked" else None
    cu_seqlens = torch.tensor([0, 4, 19]) if rows == "packed" else None
    weight = torch.randn(u.shape, dtype=torch.float64)
    if mask is not None:
        weight = torch.where(mask[..., None], weight, 0.0)
    cuts = [cut for cut in (1, 3) if cut < mixer.units]
    results = []
    for y in (
        mixer(u, mask, cu_seqlens, L_MAX if cu_seqlens is not None else None),
        in_cores(mixer, u, mask, cu_seqlens, cuts),
    ):
        y = torch.where(mask[..., None], y, 0.0) if mask is not None else y
        grads = torch.autograd.grad((y * weight).sum(), [u, *mixer.parameters()], allow_unused=True)
        results.append([y.detach(), *grads])
    for name_of, want, got in zip(["y", "u", *dict(mixer.named_parameters())], *results, strict=True):
        assert (want is None) == (got is None), name_of
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda m, n=name_of: f"{n}: {m}")


@pytest.mark.parametrize("name", list(CASES))
def test_what_has_no_units_says_so(name: str) -> None:
    mixer = CASES[name]()
    if shares_keys(name):
        with pytest.raises(ValueError, match=r"num_kv_heads=1 below num_heads=2 cannot be spread"):
            mixer.core(range(1))
    elif name.split("-")[0] in SPREAD:
        assert mixer.units > 1 or mixer.units == getattr(mixer, "num_heads", 0)
    else:
        assert mixer.units == 1
        with pytest.raises(ValueError, match=r"channels of a .* meet between its projections"):
            mixer.core(range(1))


def test_a_core_makes_its_own_taps_alone() -> None:
    op = HyenaOperator(D, L_MAX)
    filter = op.core(range(2, 5)).conv.filter
    assert filter is not None
    assert filter(9).shape == (1, 9, 3)
    assert filter.ffn.out.weight.shape[0] == 3
    torch.testing.assert_close(filter(9), op.conv.filter(9)[..., 2:5])


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_of_channels(groups: int) -> None:
    torch.manual_seed(0)
    op = HyenaOperator(D, L_MAX, filter_groups=groups, dtype=torch.float64)
    assert op.units == (groups if groups > 1 else D)
    u = torch.randn(2, 11, D, dtype=torch.float64)
    torch.testing.assert_close(in_cores(op, u, None, None, [1]), op(u))


def test_parts_with_hooks_raise() -> None:
    op = HyenaOperator(D, L_MAX)
    op.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="LongConv has hooks"):
        op.core(range(2))
    op = HyenaOperator(D, L_MAX)
    weight_norm(op.short)
    with pytest.raises(ValueError, match="ShortConv has hooks, a parametrisation"):
        op.core(range(2))


def test_a_filter_with_adapters_is_called() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    op = HyenaOperator(D, L_MAX, dtype=torch.float64)
    op.conv.filter.ffn.out = Doubled(op.conv.filter.ffn.out)
    u = torch.randn(2, 11, D, dtype=torch.float64)
    torch.testing.assert_close(in_cores(op, u, None, None, [3]), op(u))
