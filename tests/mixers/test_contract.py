"""The contract of every exported mixer: shapes, dtypes, causality, padding, packing, copies, compiling, decoding."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyena.mixers
from helpers.cases import offsets
from helpers.mixers import CASES, L_MAX, D
from hyena.mixers import Mixer, State
from hyena.optim import param_groups

# Of float64, in units of outputs of about 1: transforms and sums in another order.
CLOSE = 1e-11


@pytest.fixture(params=CASES)
def make(request: pytest.FixtureRequest) -> Callable[..., Mixer]:
    return CASES[request.param]


@pytest.fixture
def mixer(make) -> Mixer:
    return make(dtype=torch.float64).eval()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def apart(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def test_every_exported_mixer_has_a_case() -> None:
    exported = {
        name
        for name in hyena.mixers.__all__
        if inspect.isclass(thing := getattr(hyena.mixers, name))
        and issubclass(thing, Mixer)
        and not inspect.isabstract(thing)
    }
    own = {"GatedConv"}  # of docs/add-your-own.md
    assert exported | own == {name.partition("-")[0] for name in CASES}


def test_attributes(mixer: Mixer) -> None:
    assert (mixer.d_model, mixer.l_max) == (D, L_MAX)
    assert isinstance(mixer.causal, bool)
    assert isinstance(mixer.needs_positions, bool)
    assert all(hasattr(mixer, name) for name in mixer.no_decay)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shape_dtype_and_gradients(make, dtype: torch.dtype) -> None:
    mixer = make().to(dtype)
    exact = copy.deepcopy(mixer).double()
    u = rows(2, 21).to(dtype).requires_grad_()
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


def test_gradients_by_differences(make) -> None:
    mixer, u = make(dtype=torch.float64), rows(1, 5).requires_grad_()
    names, values = zip(*((n, p.detach().clone()) for n, p in mixer.named_parameters() if p.numel()), strict=True)

    def call(u: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), u)

    assert torch.autograd.gradcheck(call, (u, *(v.requires_grad_() for v in values)), fast_mode=True)


def test_second_derivatives(make) -> None:
    mixer, u = make(dtype=torch.float64), rows(1, 5).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has none on a CPU
        assert torch.autograd.gradgradcheck(mixer, u, fast_mode=True)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_any_width_sees_its_input(make: partial[Mixer], width: int) -> None:
    def build() -> Mixer:
        return make.func(width, L_MAX, **make.keywords, dtype=torch.float64)

    pairs = 2 if "rotary_base" in make.keywords else 1
    if width % (make.keywords.get("num_heads", make.keywords.get("head_dim", 1)) * pairs):
        with pytest.raises(ValueError, match=r"not a multiple of (num_heads|head_dim)=|have no pairs"):
            build()
        return
    mixer = build()
    u = rows(1, 6)[..., :width].requires_grad_()
    y = mixer(u)
    y.square().sum().backward()
    assert u.grad is not None
    assert (u.grad != 0).any(2).all(), "of every position"


@pytest.mark.parametrize("length", [1, 2, 3, 13, 32, 47, L_MAX])
def test_any_length(mixer: Mixer, length: int) -> None:
    y = mixer(rows(2, length))
    assert y.shape == (2, length, D)
    assert y.isfinite().all()


def test_no_rows_at_all(mixer: Mixer) -> None:
    u = rows(0, 7).requires_grad_()
    y = mixer(u)
    assert y.shape == (0, 7, D)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in mixer.parameters())


def test_wrong_inputs_name_the_numbers(mixer: Mixer) -> None:
    for length in (L_MAX + 1, 2 * L_MAX):
        with pytest.raises(ValueError, match=rf"{length} positions.*l_max={L_MAX}"):
            mixer(rows(1, length))
    for shape in ((1, 4, D + 1), (4, D), (1, 1, 4, D)):
        with pytest.raises(ValueError, match=r"expected .*\(B, L, .*got"):
            mixer(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"floating point.*int64 of shape \(2, 9, {D}\)"):
        mixer(rows(2, 9).long())
    with pytest.raises(ValueError, match=r"mask .*\(2, 9\).*\(2, 8\)"):
        mixer(rows(2, 9), torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(TypeError):
        mixer(rows(2, 9), attention_mask=None)


def test_causal_by_value_and_by_gradient(mixer: Mixer) -> None:
    u, at = rows(1, 30), 17
    other = u.clone()
    other[:, at:] += 3 * torch.randn(1, 30 - at, D, dtype=torch.float64)
    differ = apart(mixer(u)[:, :at], mixer(other)[:, :at])
    leaf = u.clone().requires_grad_()
    mixer(leaf)[:, :at].square().sum().backward()
    leaks = leaf.grad[:, at:].abs().max().item()
    if mixer.causal:
        assert max(differ, leaks) < CLOSE
    else:
        assert min(differ, leaks) > 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(mixer: Mixer, side: str) -> None:
    u, kept = rows(2, 24), 15
    at = torch.arange(24)
    keep = torch.stack([torch.ones(24, dtype=torch.bool), at < kept if side == "right" else at >= 24 - kept])
    part = slice(0, kept) if side == "right" else slice(24 - kept, 24)
    padded = u.clone()
    padded[1, ~keep[1]] = torch.nan
    leaf = padded.clone().requires_grad_()
    y = mixer(leaf, keep)
    assert apart(y[0], mixer(u[:1])[0]) < CLOSE
    assert apart(y[1, part], mixer(u[1:, part])[0]) < CLOSE
    y[keep].square().sum().backward()
    assert not leaf.grad[~keep].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("max_seqlen", [None, 20])
def test_packed_rows_do_not_see_each_other(mixer: Mixer, max_seqlen: int | None) -> None:
    sizes = [20, 1, 0, 13, 7]
    u = rows(1, sum(sizes))
    y = mixer(u, cu_seqlens=offsets(sizes), max_seqlen=max_seqlen)
    at = 0
    for size in sizes:
        if size:
            assert apart(y[:, at : at + size], mixer(u[:, at : at + size])) < CLOSE
        at += size
    flat = mixer(u[0], cu_seqlens=offsets(sizes), max_seqlen=max_seqlen)
    assert apart(flat, y[0]) < CLOSE
    # Together longer than l_max, each within it.
    many = rows(1, 3 * L_MAX)
    y = mixer(many, cu_seqlens=offsets([L_MAX] * 3), max_seqlen=L_MAX if max_seqlen else None)
    assert apart(y[:, L_MAX : 2 * L_MAX], mixer(many[:, L_MAX : 2 * L_MAX])) < CLOSE


def test_copies_and_files(make, mixer: Mixer) -> None:
    u = rows(2, 19)
    want = mixer(u)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    loaded = make(dtype=torch.float64).eval()
    loaded.load_state_dict(torch.load(file))
    for other in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), loaded):
        assert torch.equal(other(u), want)


def test_reset_initialises_everything(make) -> None:
    mixer = make(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in [*mixer.parameters(), *mixer.buffers()]:
            t.fill_(torch.nan)
    mixer.reset_parameters()
    for name, t in [*mixer.named_parameters(), *mixer.named_buffers()]:
        assert t.isfinite().all(), name
    assert mixer(rows(1, 9).float()).isfinite().all()


def test_autocast(make) -> None:
    mixer, u = make(), rows(2, 19).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(u)
    assert y.dtype == torch.bfloat16
    want = mixer(u)
    assert apart(y, want) < 0.05 * want.abs().max().item()


def test_compiles_and_exports_in_one_graph(make) -> None:
    mixer, u, keep = make(dtype=torch.float64).eval(), rows(2, 19), torch.rand(2, 19) < 0.7
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    assert apart(compiled(u), mixer(u)) < CLOSE
    assert apart(compiled(u, keep), mixer(u, keep)) < CLOSE
    program = torch.export.export(mixer, (u,))
    assert apart(program.module()(u), mixer(u)) < CLOSE
    torch._dynamo.reset()


def test_parameter_groups_hold_every_parameter(mixer: Mixer) -> None:
    groups = param_groups(mixer, 1e-3)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in mixer.parameters())


def test_the_matrix_is_what_the_mixer_applies_to_a_value(mixer: Mixer) -> None:
    u = rows(1, 11)
    try:
        matrix = mixer.to_matrix(u)
    except ValueError as reason:
        assert type(mixer).__name__ in str(reason)  # noqa: PT017 (either is within the contract)
        return
    assert matrix.shape[0] == 1
    assert matrix.shape[2:] == (11, 11)
    assert apart(mixer.to_matrix(u, channels=slice(2, 4)), matrix[:, 2:4]) < CLOSE
    if mixer.causal:
        assert not matrix.triu(1).any()


def pieces(mixer: Mixer, u: Tensor, state: State, sizes: list[int], keep: Tensor | None = None) -> Tensor:
    """``u`` through ``prefill`` and, where a piece is one position, ``step``."""
    out, at = [], 0
    for n in sizes:
        mask = None if keep is None else keep[:, at : at + n]
        if n == 1:
            y, state = mixer.step(u[:, at], state, None if mask is None else mask[:, 0])
            out.append(y[:, None])
        else:
            y, state = mixer.prefill(u[:, at : at + n], state, mask)
            out.append(y)
        at += n
    assert at == u.size(1) == state.position
    return torch.cat(out, dim=1)


def needs_steps(mixer: Mixer) -> None:
    """Skips mixers that cannot be stepped, which say so."""
    try:
        mixer.init_state(1)
    except ValueError as reason:
        assert len(str(reason)) > 20  # noqa: PT017 (either is within the contract)
        pytest.skip(f"cannot be stepped: {reason}")


@pytest.mark.parametrize("sizes", [[1] * 40, [40], [7, 1, 1, 20, 11], [33, 1, 6]], ids=str)
def test_steps_and_chunks_are_the_parallel_form(mixer: Mixer, sizes: list[int]) -> None:
    needs_steps(mixer)
    u = rows(3, 40)
    assert apart(pieces(mixer, u, mixer.init_state(3), sizes), mixer(u)) < CLOSE
    keep = torch.arange(40) >= torch.tensor([[0], [9], [21]])
    y = pieces(mixer, u, mixer.init_state(3, 40), sizes, keep)
    assert apart(y[keep], mixer(u, keep)[keep]) < CLOSE


def test_states(mixer: Mixer) -> None:
    needs_steps(mixer)
    u, state = rows(2, 30), mixer.init_state(2, 30)
    size = mixer.state_size(2, 30)
    assert (size.rows, size.shared) == tuple(state.size())
    assert size.rows == sum(t.numel() * t.element_size() for t in state.rows().values())
    assert state.batch == 2
    mixer.prefill(u[:, :13], state)
    want = mixer(u)[:, 13:]
    saved, copied = {k: t.clone() for k, t in state.state_dict().items()}, state.clone()
    turned = state.reorder(torch.tensor([1, 0, 1]))
    assert apart(pieces_after(mixer, u, state), want) < CLOSE
    assert apart(pieces_after(mixer, u, copied), want) < CLOSE
    assert apart(pieces_after(mixer, u[[1, 0, 1]], turned), want[[1, 0, 1]]) < CLOSE
    again = mixer.init_state(2, 30)
    again.load_state_dict(saved)
    assert again.position == 13
    assert apart(pieces_after(mixer, u, again), want) < CLOSE
    with pytest.raises(ValueError, match="30 positions and 1 more do not fit"):
        mixer.step(u[:, 0], state)


def pieces_after(mixer: Mixer, u: Tensor, state: State) -> Tensor:
    return torch.cat([mixer.prefill(part, state)[0] for part in u[:, state.position :].split(4, dim=1)], dim=1)


def test_states_refuse_what_is_not_theirs(mixer: Mixer) -> None:
    needs_steps(mixer)
    state = mixer.init_state(2, 20)
    good = state.state_dict()
    name = next(iter(state.rows()))
    for bad in (
        {**good, "position": torch.tensor(-1)},
        {**good, "position": torch.tensor(21)},
        {**good, "position": torch.tensor(1.5)},
        {**good, name: good[name].to(torch.complex64)},
        {**good, name: good[name][:1]},
        {k: t for k, t in good.items() if k != name},
        {**good, "more": torch.zeros(2)},
    ):
        with pytest.raises(ValueError, match="saved state"):
            state.load_state_dict(bad)
    for batch, length in ((0, 4), (1, 0), (1, L_MAX + 1)):
        with pytest.raises(ValueError, match=str(length if batch else batch)):
            mixer.init_state(batch, length)
    with pytest.raises(ValueError, match=r"\(2, n, 8\).*\(3, 4, 8\)"):
        mixer.prefill(rows(3, 4), state)
    with pytest.raises(ValueError, match="prefill takes several"):
        mixer.step(rows(2, 1), state)

    class Other(State):
        pass

    with pytest.raises(ValueError, match="Other"):
        mixer.prefill(rows(2, 4), Other(0, 20))


def test_steps_run_hooks(mixer: Mixer) -> None:
    """Whoever hooks the mixer, or a layer of it that ``forward`` calls, is called in steps too."""
    needs_steps(mixer)
    called: list[str] = []
    for name, module in mixer.named_modules():
        if name in ("", "in_proj", "out_proj"):
            module.register_forward_hook(lambda m, inputs, y, name=name: called.append(name))
    u, state = rows(1, 6), mixer.init_state(1)
    mixer(u)
    whole = set(called)
    called.clear()
    mixer.prefill(u[:, :5], state)
    assert set(called) == whole
    called.clear()
    mixer.step(u[:, 5], state)
    assert set(called) == whole


def test_hooks_change_forward_and_steps_alike(mixer: Mixer) -> None:
    needs_steps(mixer)
    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, inputs, y: 0.5 * y + 0.1)
    u = rows(2, 20)
    assert apart(pieces(mixer, u, mixer.init_state(2), [11, 1, 8]), mixer(u)) < CLOSE


def test_a_compiled_step_is_traced_a_few_times_at_most(make) -> None:
    mixer = make().eval()
    needs_steps(mixer)
    frames = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    step = torch.compile(mixer.step, backend=frames, fullgraph=True)
    u, state = rows(2, 40).float(), mixer.init_state(2, 40)
    out = []
    with torch.no_grad():
        for t in range(40):
            y, state = step(u[:, t], state)
            out.append(y)
        want = mixer(u)
    assert apart(torch.stack(out, dim=1), want) < 1e-4
    # 0, 1 and any other position.
    assert frames.frame_count <= 3
    torch._dynamo.reset()
