"""CausalLM and the blocks it is made of."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import HyenaOperator
from hyena.generation import generate_by_rerun, sample
from hyena.models import MLP, Block, CausalLM, CausalLMConfig

MIXERS = ["HyenaOperator", "Attention"]
V, L_MAX = 11, 24


def config(mixer: str, **changes: object) -> CausalLMConfig:
    options = {"num_heads": 4} if mixer == "Attention" else {}
    values = {"vocab_size": V, "l_max": L_MAX, "d_model": 16, "num_layers": 2, "mixer": mixer, "mixer_options": options}
    values |= changes
    return CausalLMConfig(**values)


def build(mixer: str, **changes: object) -> CausalLM:
    """A float64 model with weights large enough that every part of it shows in the logits."""
    model = CausalLM(config(mixer, **changes), dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(V, shape)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (3, L_MAX)])
def test_logits_and_loss(mixer: str, batch: int, length: int) -> None:
    model, x, y = build(mixer), tokens(batch, length), tokens(batch, length)
    logits, loss = model(x), model.loss(x, y)
    assert logits.shape == (batch, length, V)
    chosen = (logits - logits.exp().sum(-1, keepdim=True).log()).gather(-1, y[..., None])
    torch.testing.assert_close(loss, -chosen.mean())


@pytest.mark.parametrize("mixer", MIXERS)
def test_ignored_targets_do_not_count(mixer: str) -> None:
    model, x, y = build(mixer), tokens(2, 9), tokens(2, 9)
    y[0, 3:], y[1, 0] = -100, -100
    logits, loss = model(x), model.loss(x, y)
    kept = y != -100
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], y[kept]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_logit_sees_a_later_token(mixer: str) -> None:
    model, x = build(mixer), tokens(1, 13)
    for at in range(13):
        changed = x.clone()
        changed[:, at] = (x[:, at] + 1) % V
        difference = (model(changed) - model(x)).abs().amax((0, 2))
        assert difference[:at].max() < 1e-12 if at else True
        assert difference[at] > 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer: str, side: str) -> None:
    model, sizes, length = build(mixer), [9, 4, 1], 12
    rows, following = [tokens(1, n) for n in sizes], [tokens(1, n) for n in sizes]
    batch, targets = tokens(3, length), tokens(3, length)  # the padding is arbitrary tokens
    mask = torch.zeros(3, length, dtype=torch.bool)
    for i, n in enumerate(sizes):
        at = slice(length - n, length) if side == "left" else slice(0, n)
        batch[i, at], targets[i, at], mask[i, at] = rows[i], following[i], True
    logits, loss = model(batch, mask), model.loss(batch, targets, mask)
    alone = [model.loss(x, y) for x, y in zip(rows, following)]
    for i in range(3):
        torch.testing.assert_close(logits[i][mask[i]], model(rows[i])[0])
    torch.testing.assert_close(loss, sum(a * n for a, n in zip(alone, sizes)) / sum(sizes))
    loss.backward()
    masked = gradients(model)
    model.zero_grad()
    sum(model.loss(x, y) * n / sum(sizes) for x, y, n in zip(rows, following, sizes)).backward()
    for got, want in zip(masked, gradients(model)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("longest", [None, 9])
@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_rows_do_not_see_each_other(mixer: str, longest: int | None) -> None:
    # Together they are longer than l_max; none of them is.
    model, sizes = build(mixer), [9, 1, 7, 8]
    rows = [tokens(1, n) for n in sizes]
    cu_seqlens = torch.tensor([0, *sizes]).cumsum(0).int()
    logits = model(torch.cat(rows, dim=1), cu_seqlens=cu_seqlens, max_seqlen=longest)
    torch.testing.assert_close(logits, torch.cat([model(x) for x in rows], dim=1))


@pytest.mark.parametrize("mixer", MIXERS)
def test_gradient_checkpointing_changes_memory_only(mixer: str) -> None:
    plain, saving = (build(mixer, gradient_checkpointing=on, dropout=0.3) for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    x, mask = tokens(2, 10), torch.arange(10) < torch.tensor([[10], [6]])
    results = []
    for model in (plain, saving):
        torch.manual_seed(1)
        loss = model.loss(x, x, mask=mask)
        loss.backward()
        results.append([loss.detach(), *gradients(model)])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    kept = []
    for model in (plain, saving):
        saved = 0

        def count(t: Tensor) -> Tensor:
            nonlocal saved
            saved += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model.loss(x, x)
        kept.append(saved)
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("mixer", MIXERS)
def test_too_long_rows_raise(mixer: str) -> None:
    model = build(mixer)
    with pytest.raises(ValueError, match=f"{L_MAX + 1} positions is longer than this .* l_max={L_MAX}"):
        model(tokens(1, L_MAX + 1))
    with pytest.raises(ValueError, match=f"{L_MAX + 1} positions is longer than this .* l_max={L_MAX}"):
        model(tokens(1, L_MAX + 4), cu_seqlens=torch.tensor([0, L_MAX + 1, L_MAX + 4]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_wrong_shapes_raise(mixer: str) -> None:
    model = build(mixer)
    with pytest.raises(ValueError, match=r"tokens must be \(B, L\), got \(5,\)"):
        model(tokens(5))
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 4\)"):
        model.loss(tokens(2, 5), tokens(2, 4))
    with pytest.raises(ValueError, match=r"bool or integer, of shape \(2, 5\)"):
        model(tokens(2, 5), mask=torch.ones(2, 5))


@pytest.mark.parametrize("mixer", MIXERS)
def test_tied_embeddings(mixer: str) -> None:
    tied, own = (CausalLM(config(mixer, tie_embeddings=on)) for on in (True, False))
    assert tied.head.weight is tied.embedding.weight
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in tied.parameters()) == V * 16
    assert copy.deepcopy(tied).head.weight is not tied.head.weight
    copied = copy.deepcopy(tied)
    assert copied.head.weight is copied.embedding.weight


@pytest.mark.parametrize("mixer", MIXERS)
def test_copies_compute_the_same(mixer: str) -> None:
    model, x = build(mixer), tokens(2, 8)
    want = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixer", MIXERS)
def test_half_precision(mixer: str, dtype: torch.dtype) -> None:
    model, x = CausalLM(config(mixer)), tokens(2, 20)
    want, want_loss = model(x), model.loss(x, x)
    half = copy.deepcopy(model).to(dtype)
    logits, loss = half(x), half.loss(x, x)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    torch.testing.assert_close(logits.float(), want, rtol=0, atol=20 * torch.finfo(dtype).eps * want.abs().max().item())
    torch.testing.assert_close(loss, want_loss, rtol=2 * torch.finfo(dtype).eps, atol=0)
    with torch.autocast("cpu", dtype=dtype):
        loss = model.loss(x, x)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("mixer", MIXERS)
def test_compile_in_one_graph(mixer: str) -> None:
    model, x = build(mixer), tokens(2, 10)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_initial_weights(mlp: str) -> None:
    model = CausalLM(CausalLMConfig(vocab_size=500, l_max=64, d_model=256, num_layers=8, mlp=mlp))
    fresh = HyenaOperator(256, 64)
    for block in model.blocks:
        wide, narrow = block.mixer.in_proj.weight.std(), block.mixer.out_proj.weight.std()
        torch.testing.assert_close(narrow * (2 * 8) ** 0.5, wide, rtol=0.05, atol=0)
        entering = [block.mlp.fc1, block.mlp.gate] if mlp == "swiglu" else [block.mlp.fc1]
        for layer in entering:
            torch.testing.assert_close(layer.weight.std(), wide, rtol=0.05, atol=0)
        torch.testing.assert_close(block.mlp.fc2.weight.std(), narrow, rtol=0.05, atol=0)
        if mlp == "gelu":
            assert block.mlp.fc1.bias.count_nonzero() == 0
        # The filters keep their own.
        norm = block.mixer.conv.filter(64).square().sum(1).sqrt()
        torch.testing.assert_close(norm, fresh.conv.filter(64).square().sum(1).sqrt(), rtol=1e-3, atol=0)
    loss = model.loss(torch.randint(500, (4, 64)), torch.randint(500, (4, 64)))
    assert abs(loss.item() - torch.tensor(500.0).log().item()) < 0.3


def test_blocks_take_any_mixer() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return factor * x

    block, x = Block(Doubling(), 8, d_inner=12, mlp="gelu_tanh"), torch.randn(2, 3, 8)
    half = x + 2.0 * F.layer_norm(x, (8,))
    hidden = F.gelu(block.mlp.fc1(F.layer_norm(half, (8,))), approximate="tanh")
    torch.testing.assert_close(block(x, factor=2.0), half + block.mlp.fc2(hidden))
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'fast'"):
        MLP(8, 8, approximate="fast")


class _Counting(nn.Module):
    """Whatever it is shown, the next token is one more than the last; and it notes how many it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.size(1))
        return F.one_hot((x + 1) % V, V).double() * 50


def test_generate_continues_each_row_in_a_window() -> None:
    model = _Counting().train()
    out = generate_by_rerun(model, torch.tensor([[3], [9]]), 4, window=3)
    assert out.tolist() == [[3, 4, 5, 6, 7], [9, 10, 0, 1, 2]]
    assert model.seen == [1, 2, 3, 3]
    assert model.training


@pytest.mark.parametrize("mixer", MIXERS)
def test_generate_repeats_with_a_seed(mixer: str) -> None:
    model, start = build(mixer), tokens(2, 3)
    runs = [
        generate_by_rerun(model, start, 30, window=L_MAX, top_k=5, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert runs[0].shape == (2, 33)
    assert torch.equal(runs[0][:, :3], start)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_sample() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    drawn = sample(logits, temperature=0.5).bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, (logits[0] / 0.5).softmax(0), atol=0.015, rtol=0)
    assert set(sample(logits, top_k=2).tolist()) == {1, 2}
    assert set(sample(logits, temperature=0).tolist()) == {2}
    assert sample(logits[:3], top_k=100).shape == (3,)
    with pytest.raises(ValueError, match="got -1"):
        sample(logits, temperature=-1)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        sample(logits, top_k=0)
    with pytest.raises(ValueError, match=r"got \(2, 0\)"):
        generate_by_rerun(_Counting(), torch.zeros(2, 0, dtype=torch.long), 1, window=4)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        generate_by_rerun(_Counting(), tokens(1, 2), 1, window=0)
