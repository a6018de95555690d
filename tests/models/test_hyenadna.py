"""The HyenaDNA model itself: padding, packing, heads, precision, training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from helpers.released import deviation
from hyena import HyenaOperator
from hyena.generation import generate_by_rerun
from hyena.models import HyenaDNA, HyenaDNAConfig

SMALL = {"d_model": 16, "num_layers": 2, "l_max": 50, "filter_width": 8, "embed_dropout": 0.0}


def build(dtype: torch.dtype = torch.float64, **changes: object) -> HyenaDNA:
    """A model whose weights are large enough that every part of it shows in the output."""
    model = HyenaDNA(HyenaDNAConfig(**{**SMALL, **changes}), dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def tokens(*shape: int) -> Tensor:
    return torch.randint(7, 12, shape)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("length", [1, 2, 17, 50])
@pytest.mark.parametrize("head", [None, "lm", "classes"])
def test_shapes(head: str | None, length: int) -> None:
    model = build(head=head, num_classes=3)
    expected = {None: (2, length, 16), "lm": (2, length, 16), "classes": (2, 3)}[head]
    assert model(tokens(2, length)).shape == expected
    assert model.hidden_states(tokens(2, length)).shape == (2, length, 16)


@pytest.mark.parametrize(("vocab", "multiple", "padded"), [(12, 8, 16), (12, 1, 12), (16, 8, 16), (5, 64, 64)])
def test_the_vocabulary_is_padded(vocab: int, multiple: int, padded: int) -> None:
    model = build(vocab_size=vocab, pad_vocab_size_multiple=multiple, head="lm")
    assert model.embedding.num_embeddings == padded
    assert model(tokens(1, 3) % vocab).shape == (1, 3, padded)


def test_it_is_causal() -> None:
    model, x = build(head="lm"), tokens(1, 20)
    other = x.clone()
    other[0, 11] = 7 + (x[0, 11] - 6) % 5
    assert deviation(model(other)[:, :11], model(x)[:, :11]) < 1e-12
    assert deviation(model(other)[:, 11:], model(x)[:, 11:]) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_padding_changes_nothing(side: str, dtype: torch.dtype) -> None:
    rows = [tokens(1, n) for n in (9, 23, 1)]
    batch, mask = torch.full((3, 23), 4), torch.zeros(3, 23, dtype=dtype)
    for i, row in enumerate(rows):
        at = slice(23 - row.size(1), 23) if side == "left" else slice(0, row.size(1))
        batch[i, at], mask[i, at] = row[0], 1
    for head in (None, "classes"):
        model = build(head=head)
        got = model(batch, mask)
        for i, row in enumerate(rows):
            mine = got[i : i + 1] if head else got[i : i + 1, mask[i].bool()]
            assert deviation(mine, model(row)) < 1e-12
    # Without the mask a left-padded row is another one: HyenaDNA's own code has none.
    if side == "left":
        assert deviation(build()(batch)[:1, -9:], build()(rows[0])) > 1e-3


def test_packed_rows() -> None:
    model, rows = build(head="lm"), [tokens(1, n) for n in (5, 12, 1)]
    packed = model(torch.cat(rows, dim=1), cu_seqlens=torch.tensor([0, 5, 17, 18]), max_seqlen=12)
    assert deviation(packed, torch.cat([model(row) for row in rows], dim=1)) < 1e-12
    with pytest.raises(ValueError, match="pad rows"):
        build(head="classes")(torch.cat(rows, dim=1), cu_seqlens=torch.tensor([0, 5, 17, 18]))


def test_gradient_checkpointing_changes_nothing() -> None:
    x, mask = tokens(2, 15), torch.ones(2, 15, dtype=torch.bool)
    mask[0, :4] = False
    plain = build(head="lm")
    saving = HyenaDNA(HyenaDNAConfig(**SMALL, head="lm", gradient_checkpointing=True), dtype=torch.float64)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        model(x, mask).square().mean().backward()
    assert gradients(plain).keys() == gradients(saving).keys()
    for name, g in gradients(plain).items():
        torch.testing.assert_close(gradients(saving)[name], g)


def test_half_precision_with_a_float32_residual() -> None:
    x = tokens(2, 40)
    exact = build(num_layers=6)
    errors = []
    for fp32 in (True, False):
        model = HyenaDNA(HyenaDNAConfig(**SMALL | {"num_layers": 6}, residual_in_fp32=fp32), dtype=torch.bfloat16)
        model.load_state_dict(exact.state_dict())
        seen: list[torch.dtype] = []
        model.blocks[3].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].dtype))
        got = model(x)
        assert got.dtype == torch.bfloat16
        assert seen == [torch.float32 if fp32 else torch.bfloat16]
        errors.append((got.double() - exact(x)).square().mean().sqrt().item())
    assert errors[0] < errors[1]


def test_autocast() -> None:
    model, x = build(torch.float32, head="lm"), tokens(2, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x)
    assert deviation(got.float(), model(x)) < 0.05


def test_float64_stays_float64() -> None:
    model = build(residual_in_fp32=True)
    assert model(tokens(1, 8)).dtype == torch.float64


def test_a_new_model_learns() -> None:
    torch.manual_seed(1)
    model = HyenaDNA(HyenaDNAConfig(**SMALL | {"d_model": 32}, head="lm"))
    assert model.head.weight is model.embedding.weight
    assert sum(p.numel() for p in model.parameters() if p is model.head.weight) == 16 * 32
    row = tokens(1, 48)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        logits = model(row[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.3


def test_generation() -> None:
    model, row = build(head="lm"), tokens(2, 6)
    longer = generate_by_rerun(model, row, 5, window=50, temperature=0)
    assert torch.equal(longer[:, :6], row)
    for at in range(6, 11):
        assert torch.equal(longer[:, at], model(longer[:, :at])[:, -1].argmax(-1))


def test_dropout_only_in_training() -> None:
    model, x = build(embed_dropout=0.3, dropout=0.2), tokens(1, 20)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_mixers_of_ones_own() -> None:
    mixers = [HyenaOperator(16, 50, order=3, dtype=torch.float64) for _ in range(2)]
    before = [m.in_proj.weight.clone() for m in mixers]
    model = HyenaDNA(HyenaDNAConfig(**SMALL), mixers, dtype=torch.float64)
    assert all(block.mixer is m for block, m in zip(model.blocks, mixers, strict=True))
    assert all(torch.equal(m.in_proj.weight, w) for m, w in zip(mixers, before, strict=True))
    with pytest.raises(ValueError, match="num_layers=2 blocks need as many mixers, got 1"):
        HyenaDNA(HyenaDNAConfig(**SMALL), mixers[:1])


def test_copies_pickles_and_state() -> None:
    model, x = build(head="lm").eval(), tokens(1, 30)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert other.head.weight is other.embedding.weight
    again = HyenaDNA(HyenaDNAConfig.from_dict(model.config.to_dict()), dtype=torch.float64).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), want)


def test_errors() -> None:
    model = build()
    with pytest.raises(ValueError, match="a row of 51 positions is longer than this HyenaOperator's l_max=50"):
        model(tokens(1, 51))
    with pytest.raises(ValueError, match=r"tokens must be \(B, L\), got \(5,\)"):
        model(tokens(5))
    with pytest.raises(ValueError, match="mask must be bool or integer"):
        model(tokens(1, 5), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="head must be"):
        HyenaDNAConfig(head="mlm")
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        HyenaDNAConfig(num_layers=0)
    with pytest.raises(ValueError, match=r"unknown fields in a HyenaDNAConfig: \['layers'\]"):
        HyenaDNAConfig.from_dict({"layers": 2})


def test_compiled_with_a_mask() -> None:
    model, x = build(torch.float32, head="lm").eval(), tokens(2, 33)
    mask = torch.arange(33) >= torch.tensor([[0], [7]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert deviation(compiled(x, mask)[mask], model(x, mask)[mask]) < 1e-5
