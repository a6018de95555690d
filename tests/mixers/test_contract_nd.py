"""The contract of every mixer over grids: shapes, dtypes, padding, copies, compiling, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hyena.mixers
from helpers.mixers import GRID_CASES, SIZES, D
from hyena.mixers import MixerND
from hyena.optim import param_groups

# Of float64, in units of outputs of about 1: transforms and sums in another order.
CLOSE = 1e-11


@pytest.fixture(params=GRID_CASES)
def case(request: pytest.FixtureRequest) -> tuple[int, Callable[..., MixerND]]:
    return GRID_CASES[request.param]


@pytest.fixture
def space(case) -> tuple[int, ...]:
    return SIZES[case[0]]


@pytest.fixture
def make(case) -> Callable[..., MixerND]:
    return case[1]


@pytest.fixture
def mixer(make) -> MixerND:
    return make(dtype=torch.float64).eval()


def grid(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def apart(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def test_every_exported_mixer_has_a_case() -> None:
    exported = {
        name
        for name in hyena.mixers.__all__
        if issubclass(kind := getattr(hyena.mixers, name), MixerND) and not inspect.isabstract(kind)
    }
    assert exported == {name.partition("-")[0] for name in GRID_CASES}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shape_dtype_and_gradients(make, space, dtype: torch.dtype) -> None:
    mixer = make().to(dtype)
    exact = copy.deepcopy(mixer).double()
    u = grid(2, *space).to(dtype).requires_grad_()
    y = mixer(u)
    assert y.shape == u.shape
    assert y.dtype == dtype
    want = exact(u.detach().double())
    scale = want.abs().max().item()
    assert apart(y, want) <= {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 0.05) * scale
    (y.float() if dtype != torch.float64 else y).square().sum().backward()
    for name, p in [("u", u), *mixer.named_parameters()]:
        if p.numel():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name


def test_gradients_by_differences(make, space) -> None:
    mixer, u = make(dtype=torch.float64), grid(1, *(2,) * len(space)).requires_grad_()
    names, values = zip(*((n, p.detach().clone()) for n, p in mixer.named_parameters() if p.numel()), strict=True)

    def call(u: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), u)

    assert torch.autograd.gradcheck(call, (u, *(v.requires_grad_() for v in values)), fast_mode=True)


def test_any_size(mixer: MixerND, space) -> None:
    for smaller in ((1,) * len(space), (*space[:-1], 1), tuple(max(1, n - i - 1) for i, n in enumerate(space)), space):
        y = mixer(grid(2, *smaller))
        assert y.shape == (2, *smaller, D)
        assert y.isfinite().all()
    u = grid(0, *space).requires_grad_()
    y = mixer(u)
    assert y.shape == (0, *space, D)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in mixer.parameters())


def test_every_output_sees_every_input(mixer: MixerND, space) -> None:
    if mixer.order == 1:
        pytest.skip("order 1 mixes over the short convolution alone")
    leaf = grid(1, *space).requires_grad_()
    mixer(leaf).flatten(1, -2)[0, 0].square().sum().backward()
    assert leaf.grad.abs().sum(-1).min() > 0
    assert mixer.causal is False


def test_a_masked_margin_changes_nothing(mixer: MixerND, space) -> None:
    """Where what is beyond the grid is zero, a grid with a margin that is not kept is the grid without it."""
    inner = tuple(max(1, n - 1 - i % 2) for i, n in enumerate(space))
    keep = torch.zeros(2, *space, dtype=torch.bool)
    at = tuple(slice(i % 2, i % 2 + n) for i, n in enumerate(inner))
    keep[(slice(None), *at)] = True
    u = grid(2, *space)
    padded = torch.where(keep[..., None], u, torch.nan)
    leaf = padded.clone().requires_grad_()
    y = mixer(leaf, keep)
    assert y.isfinite().all()
    assert apart(y[~keep], mixer.out_proj.bias.expand_as(y[~keep])) < CLOSE
    if set(mixer.conv.boundaries) == {"zero"}:
        assert apart(y[(slice(None), *at)], mixer(u[(slice(None), *at)])) < CLOSE
    else:
        assert apart(y, mixer(torch.where(keep[..., None], u, 3.0), keep)) < CLOSE
    y[keep].square().sum().backward()
    assert not leaf.grad[~keep].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mixer.parameters())


def test_wrong_inputs_name_the_numbers(mixer: MixerND, space) -> None:
    larger = (*space[:-1], space[-1] + 1)
    with pytest.raises(ValueError, match=rf"size=.*extend\(size=\({', '.join(map(str, larger))}") as found:
        mixer(grid(1, *larger))
    assert str(larger) in str(found.value)
    for shape in ((1, *space, D + 1), (*space, D), (1, 1, *space, D)):
        with pytest.raises(ValueError, match=r"expected an input of shape \(B, n_1.*got"):
            mixer(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"at least one position along each axis, got"):
        mixer(grid(1, *space[:-1], 0))
    for mask in (torch.ones(2, *larger, dtype=torch.bool), torch.ones(2, *space)):
        with pytest.raises(ValueError, match=r"mask must be a bool tensor"):
            mixer(grid(2, *space), mask)
    with pytest.raises(TypeError):
        mixer(grid(2, *space), attention_mask=None)


def test_it_says_what_it_cannot_do(mixer: MixerND, space) -> None:
    u = grid(1, *space)
    for name, value in (("cu_seqlens", torch.tensor([0, 3])), ("max_seqlen", 3), ("state", object())):
        with pytest.raises(ValueError, match=f"no packed rows and no steps: got {name}"):
            mixer(u, **{name: value})
    for call in (
        lambda: mixer.init_state(1),
        lambda: mixer.init_state(batch=1, max_length=3),
        lambda: mixer.prefill(u, None),
        lambda: mixer.step(u[:, 0], None, mask=None),
        lambda: mixer.state_size(1),
    ):
        with pytest.raises(ValueError, match="HyenaND needs the whole grid at once: it has no init_state, and cannot"):
            call()


def test_copies_and_files(make, mixer: MixerND, space) -> None:
    u = grid(2, *space)
    want = mixer(u)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    loaded = make(dtype=torch.float64).eval()
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), loaded):
        assert torch.equal(other(u), want)


def test_kept_spectra_follow_the_weights(mixer: MixerND, space) -> None:
    u = grid(2, *space)
    with torch.no_grad():
        first = mixer(u)
        assert torch.equal(mixer(u), first)
        smaller = mixer(u[:, :1])
        mixer.train()
        assert apart(mixer(u), first) < CLOSE
        assert apart(mixer(u[:, :1]), smaller) < CLOSE
        mixer.eval()
        for p in mixer.conv.parameters():
            p.mul_(1.1)
        kept = mixer(u)
        mixer.clear_cache()
        assert torch.equal(mixer(u), kept)
        if mixer.order > 1:
            assert apart(kept, first) > 1e-3


def test_reset_initialises_everything(make, space) -> None:
    mixer = make(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in [*mixer.parameters(), *mixer.buffers()]:
            t.fill_(torch.nan)
    mixer.reset_parameters()
    for name, t in [*mixer.named_parameters(), *mixer.named_buffers()]:
        assert t.isfinite().all(), name
    assert mixer(grid(1, *space).float()).isfinite().all()


def test_autocast(make, space) -> None:
    mixer, u = make(), grid(2, *space).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(u)
    assert y.dtype == torch.bfloat16
    want = mixer(u)
    assert apart(y, want) < 0.05 * want.abs().max().item()


def test_compiles_and_exports_in_one_graph(make, space) -> None:
    mixer, u, keep = make(dtype=torch.float64).eval(), grid(2, *space), torch.rand(2, *space) < 0.7
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    assert apart(compiled(u), mixer(u)) < CLOSE
    assert apart(compiled(u, keep), mixer(u, keep)) < CLOSE
    program = torch.export.export(mixer, (u,))
    assert apart(program.module()(u), mixer(u)) < CLOSE
    torch._dynamo.reset()


def test_parameter_groups_hold_every_parameter(mixer: MixerND) -> None:
    groups = param_groups(mixer, 1e-3)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in mixer.parameters())
    filters = {id(p) for group in groups if group["name"] in ("filters", "dynamics") for p in group["params"]}
    if mixer.conv.filter is not None:
        assert filters == {id(p) for p in mixer.conv.filter.parameters()}
