"""Hyena over patches and class tokens: against dense matrices, and what a grid of patches must do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.definitions import assert_close, assert_defined
from hyena.filters import HyenaFilterND
from hyena.mixers import HyenaPatches

D = 4
SMALL = partial(HyenaFilterND, emb_dim=5, width=8)


def build(grid: tuple[int, int] = (3, 4), tokens: int = 1, **options: object) -> HyenaPatches:
    settings: dict = {"grid": grid, "prefix_tokens": tokens, "filter": SMALL, "dtype": torch.float64}
    return HyenaPatches(D, tokens + grid[0] * grid[1], **settings | options)


def wrap(at: int, size: int, circular: bool) -> int | None:
    return at % size if circular else at if 0 <= at < size else None


def definition(op: HyenaPatches, u: Tensor, size: tuple[int, int]) -> Tensor:
    """By a matrix of all positions for each filter, filled number by number from the taps."""
    rows, columns = size
    tokens, circular = op.prefix_tokens, op.conv.boundaries[0] == "circular"
    place = [(r, s) for r in range(rows) for s in range(columns)]
    z = u @ op.in_proj.weight.T + op.in_proj.bias
    after = z.clone()
    middle = op.short.weight.size(1) // 2
    for n, (r, s) in enumerate(place):
        total = op.short.bias
        for i in range(op.short.weight.size(1)):
            for j in range(op.short.weight.size(2)):
                at = wrap(r + i - middle, rows, circular), wrap(s + j - middle, columns, circular)
                if None not in at:
                    total = total + op.short.weight[:, i, j] * z[:, tokens + at[0] * columns + at[1]]
        after[:, tokens + n] = total
    *x, v = after.split(D, dim=2)
    taps = op.conv.filter((rows, columns)) if op.conv.filter is not None else None
    for i, gate in enumerate(reversed(x[1:])):
        matrix = torch.zeros(D, u.size(1), u.size(1), dtype=u.dtype)
        for n, (r, s) in enumerate(place):
            for m, (a, b) in enumerate(place):
                for p in (-1, 0, 1) if circular else (0,):
                    for q in (-1, 0, 1) if circular else (0,):
                        lag = r - a + p * rows, s - b + q * columns
                        if abs(lag[0]) < rows and abs(lag[1]) < columns:
                            matrix[:, tokens + n, tokens + m] += taps[i, lag[0] + rows - 1, lag[1] + columns - 1]
            matrix[:, tokens + n, tokens + n] += op.conv.bias[i]
            matrix[:, tokens + n, :tokens] = op.to_patches[i].T
        matrix[:, :tokens, tokens:] = (op.from_patches[i].T / len(place))[..., None]
        matrix[:, :tokens, :tokens] = op.between[i].movedim(2, 0)
        v = torch.einsum("cts,bsc->btc", matrix, gate * v)
    return (x[0] * v) @ op.out_proj.weight.T + op.out_proj.bias


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize(("tokens", "order"), [(0, 2), (1, 2), (2, 3), (1, 1)])
def test_is_its_matrices(tokens: int, order: int, boundary: str) -> None:
    op = build(tokens=tokens, order=order, boundary=boundary)
    assert_defined(op, lambda u: definition(op, u, (3, 4)), tokens + 12)


def test_another_grid() -> None:
    op, u = build((4, 6)), torch.randn(2, 13, D, dtype=torch.float64)
    assert_close(op(u, grid=(3, 4)), definition(op, u, (3, 4)))
    assert_close(op(u[:, :13]), definition(op, torch.nn.functional.pad(u, (0, 0, 0, 0)), (2, 6)))
    with pytest.raises(ValueError, match=r"13 positions are not 1 tokens and 3 x 3 patches, 10 in all"):
        op(u, grid=(3, 3))
    with pytest.raises(ValueError, match=r"grid=\(2, 7\) is larger than \(4, 6\)"):
        op(torch.randn(2, 15, D, dtype=torch.float64), grid=(2, 7))


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_shift_of_the_picture_shifts_the_patches(tokens: int) -> None:
    op = build((4, 5), tokens, boundary="circular", order=3)
    u = torch.randn(2, tokens + 20, D, dtype=torch.float64)
    picture = u[:, tokens:].unflatten(1, (4, 5))
    y = op(u)
    for shift in ((1, 0), (0, 1), (3, 2)):
        moved = torch.cat([u[:, :tokens], picture.roll(shift, (1, 2)).flatten(1, 2)], dim=1)
        want = y[:, tokens:].unflatten(1, (4, 5)).roll(shift, (1, 2)).flatten(1, 2)
        assert_close(op(moved)[:, tokens:], want, f"patches after {shift}")
        torch.testing.assert_close(op(moved)[:, :tokens], y[:, :tokens])


def test_everything_sees_everything() -> None:
    op = build((3, 4), 2)
    u = torch.randn(1, 14, D, dtype=torch.float64, requires_grad=True)
    y = op(u)
    for position in range(14):
        grad = torch.autograd.grad(y[0, position].square().sum(), u, retain_graph=True)[0]
        assert (grad[0].abs().amax(1) > 1e-9).all()


def test_holes_in_the_picture_keep_the_rest_where_it_is() -> None:
    op, keep = build((3, 4)), torch.ones(2, 13, dtype=torch.bool)
    keep[1, [1, 6, 12]] = False
    u = torch.randn(2, 13, D, dtype=torch.float64)
    leaf = u.masked_fill(~keep[..., None], torch.nan).requires_grad_()
    y = op(leaf, keep)
    assert_close(y[0], op(u[:1])[0])
    # The same by hand: gates and values of holes are zero, and the mean is over the patches that are there.
    z = op.in_proj(u[1:]) * keep[1:, :, None]
    patches = op.short(z[:, 1:].unflatten(1, (3, 4))) * keep[1:, 1:].unflatten(1, (3, 4))[..., None]
    *x, v = torch.cat([z[:, :1], patches.flatten(1, 2)], dim=1).split(D, dim=2)
    p = x[1] * v
    grid = op.conv(p[:, 1:].unflatten(1, (3, 4))).flatten(1, 2) + op.to_patches[0] * p[:, :1]
    token = op.from_patches[0] * p[:, 1:].sum(1, keepdim=True) / 9 + op.between[0, 0] * p[:, :1]
    want = op.out_proj(x[0] * torch.cat([token, grid], dim=1))
    assert_close(y[1][keep[1]], want[0][keep[1]])
    y[keep].square().sum().backward()
    assert not leaf.grad[~keep].any()


def test_larger_images_after_extending() -> None:
    op = build((4, 4)).eval()
    u = torch.randn(1, 17, D, dtype=torch.float64)
    before = op(u)
    with pytest.raises(ValueError, match=r"26 positions .*l_max=17 \(grid=\(4, 4\) and 1 tokens\); extend\(grid\)"):
        op(torch.randn(1, 26, D, dtype=torch.float64))
    op.extend((5, 8))
    assert (op.grid, op.l_max) == ((5, 8), 41)
    assert op(torch.randn(1, 41, D, dtype=torch.float64)).shape == (1, 41, D)
    assert_close(op(u, grid=(4, 4)), before)
    with pytest.raises(ValueError, match=r"2 axes, \(5, 8\), cannot be extended to \(5,\)"):
        op.extend((5,))


def test_bad_arguments_name_the_numbers() -> None:
    for options, message in [
        ({"grid": (3, 4), "prefix_tokens": -1}, "prefix_tokens must be an integer of at least 0, got -1"),
        ({"grid": (3, 4), "causal": True}, "causal=True is not possible"),
        ({"grid": (3, 3)}, r"l_max=13 positions are more than 1 tokens and the patches of grid=\(3, 3\), 10 in all"),
        ({"grid": (3, 4), "order": 9}, "order must be 1 to 8, got 9"),
        ({"grid": (3, 4), "boundary": "mirror"}, "got 'mirror'"),
        ({"grid": (12,)}, r"grid must be \(rows, columns\) of patches, got \(12,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            HyenaPatches(D, 13, **options)
    with pytest.raises(TypeError):
        HyenaPatches(D, 13)
    with pytest.raises(ValueError, match="needs the whole input at once"):
        build().init_state(1)
    with pytest.raises(ValueError, match=r"boundary=\('reflect', 'reflect'\) joins .* pass one at a time"):
        build(boundary="reflect")(torch.zeros(1, 13, D, dtype=torch.float64), cu_seqlens=torch.tensor([0, 5, 13]))
    with pytest.raises(ValueError, match="takes no state"):
        build()(torch.zeros(1, 13, D, dtype=torch.float64), state=object())
