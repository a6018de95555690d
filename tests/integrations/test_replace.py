"""replace_attention in torch's and nanoGPT-style models, what it reports, and what it can be taught."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hyena.integrations.sites
from helpers.attention_models import EXACT, LAYERS, SIZES, D, L, M, MixerOfTokens, TinyGPT, operators, padding
from hyena.filters import HyenaFilter
from hyena.integrations.adapters.nanogpt import SequenceAdapter
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.replace import replace_attention
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention
from hyena.mixers.hyena import HyenaOperator


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyena.integrations.sites, "_BUILDERS", list(hyena.integrations.sites._BUILDERS))


def test_transformers_is_not_imported():
    code = "import sys, hyena.integrations.replace; sys.exit('transformers' in sys.modules)"
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    run = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"PYTHONPATH": path})
    assert run.returncode == 0


# torch


def test_a_whole_transformer():
    model = nn.Transformer(D, M, 2, 2, 32, 0.0, batch_first=True).double()
    report = replace_attention(model, l_max=L)
    assert len(report) == 4
    assert [(r.name, r.old, r.new, r.l_max, r.causal) for r in report.replaced[1:3]] == [
        ("encoder.layers.1.self_attn", "MultiheadAttention", "HyenaAttention", L, False),
        ("decoder.layers.0.self_attn", "MultiheadAttention", "HyenaAttention", L, True),
    ]
    assert [entry.name for entry in report.kept] == [f"decoder.layers.{i}.multihead_attn" for i in range(2)]
    assert "cross-attention" in str(report)
    assert "encoder.layers.0.self_attn: MultiheadAttention -> HyenaAttention(l_max=12, causal=False)" in str(report)

    x, y = torch.randn(3, L, D).double(), torch.randn(3, 5, D).double()
    mask = nn.Transformer.generate_square_subsequent_mask(5).double()
    keep = padding("right")[0].bool()
    want = model(x, y, tgt_mask=mask, src_key_padding_mask=~keep, memory_key_padding_mask=~keep)
    want.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        got = model(x, y, tgt_mask=mask, src_key_padding_mask=~keep, memory_key_padding_mask=~keep)
        torch.testing.assert_close(got, want, **EXACT)
        for i, n in enumerate(SIZES):
            alone = model(x[i : i + 1, :n], y[i : i + 1], tgt_mask=mask)
            torch.testing.assert_close(got[i : i + 1], alone, **EXACT)


def test_what_the_old_module_had_carries_over():
    old = nn.MultiheadAttention(D, M, dropout=0.25, bias=False, batch_first=True, dtype=torch.bfloat16)
    model = nn.Sequential(nn.LayerNorm(D), old).eval()
    model.requires_grad_(False)
    replace_attention(model, l_max=9, causal=True, order=3, short_taps=4)
    new = model[1]
    assert isinstance(new, HyenaAttention)
    assert (new.embed_dim, new.num_heads, new.dropout, new.batch_first, new.causal) == (D, M, 0.25, True, True)
    assert new.in_proj_bias is None
    kept = {torch.float32: "filter", torch.bfloat16: "proj"}  # filters keep float32 weights
    assert all(kept[p.dtype] in name or "filter" not in name for name, p in new.named_parameters())
    assert new.in_proj_weight.dtype == torch.bfloat16
    assert not any(m.training for m in new.modules())
    assert all(p.requires_grad for p in new.parameters())  # new weights have to be trained, whatever is frozen
    assert (new.operator.order, new.operator.l_max, new.operator.num_heads) == (3, 9, 1)
    model = nn.Sequential(nn.MultiheadAttention(D, M, dropout=0.25))
    replace_attention(model, l_max=9, dropout=0.5, multi_head=True)
    assert (model[0].dropout, model[0].operator.num_heads, model[0].training) == (0.5, M, True)


def test_on_the_device_of_the_old(device: str):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, M, 32, batch_first=True), 2).to(device).eval()
    replace_attention(model, l_max=L)
    with torch.no_grad():
        out = model(torch.randn(2, L, D, device=device), src_key_padding_mask=torch.zeros(2, L, device=device) > 0)
    assert out.device.type == device


def test_a_shared_module_stays_shared():
    shared = nn.MultiheadAttention(D, M)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.MultiheadAttention(D, M)})
    assert len(replace_attention(model, l_max=L)) == 3
    assert model["a"] is model["b"][0]
    assert model["a"] is not model["c"]


def test_some_attention_can_stay():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, M, 32), 3, enable_nested_tensor=False)
    report = replace_attention(model, l_max=L, where=lambda name, module: ".1." not in name)
    kinds = [type(layer.self_attn).__name__ for layer in model.layers]
    assert kinds == ["HyenaAttention", "MultiheadAttention", "HyenaAttention"]
    assert [(entry.name, entry.reason) for entry in report.kept] == [("layers.1.self_attn", "where= leaves it")]


class OwnForward(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x)[0]


class SlidingAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner_attention = nn.Sequential(nn.Linear(D, D))


def test_what_is_not_known_stays_and_is_reported():
    model = nn.ModuleDict(
        {
            "good": nn.MultiheadAttention(D, M),
            "cross_attn": nn.MultiheadAttention(D, M),
            "two": nn.MultiheadAttention(D, M, kdim=5),
            "extra": nn.MultiheadAttention(D, M, add_zero_attn=True),
            "own": OwnForward(D, M),
            "sliding": SlidingAttention(),
        }
    )
    before = dict(model.items())
    report = replace_attention(model, l_max=L)
    assert [entry.name for entry in report.replaced] == ["good"]
    assert {entry.name: entry.kind for entry in report.kept} == {
        "cross_attn": "MultiheadAttention",
        "two": "MultiheadAttention",
        "extra": "MultiheadAttention",
        "own": "OwnForward",
        "sliding": "SlidingAttention",
    }
    assert "kdim=5" in str(report)
    assert "sliding: SlidingAttention stays: not known; teach it with hyena.register_attention" in str(report)
    assert all(model[name] is before[name] for name in before if name != "good")


def test_nothing_to_replace_raises_and_says_what_was_seen():
    model = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D), SlidingAttention(), nn.MultiheadAttention(D, M, vdim=5))
    with pytest.raises(ValueError, match="found nothing to replace in Sequential") as error:
        replace_attention(model, l_max=L)
    for line in ("Linear x 3", "2: SlidingAttention stays: not known", "vdim=5"):
        assert line in str(error.value)
    model = nn.Sequential(nn.MultiheadAttention(D, M))
    replace_attention(model, l_max=L)
    with pytest.raises(ValueError, match="has 1 HyenaOperator already"):
        replace_attention(model, l_max=L)
    for root in (nn.MultiheadAttention(D, M), HyenaAttention(D, M, l_max=L)):
        with pytest.raises(ValueError, match="the model is itself"):
            replace_attention(root, l_max=L)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"l_max": L, "filter_ordre": 8}, TypeError),
        ({"l_max": L, "order": 99}, ValueError),
        ({}, ValueError),  # no config to take l_max from
        ({"l_max": L, "multi_head": True, "filter_groups": 2}, ValueError),
    ],
)
def test_after_an_error_nothing_has_changed(wrong: dict, error: type[Exception]):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, M, 32), 2, enable_nested_tensor=False)
    with pytest.raises(error, match=r"filter_ordre|99|pass l_max|filter_groups"):
        replace_attention(model, **wrong)
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.layers)


def test_a_filter_is_copied_for_each_place():
    model = nn.Sequential(nn.MultiheadAttention(D, M), nn.MultiheadAttention(D, M))
    own = HyenaFilter(D, L, 1, causal=False)
    replace_attention(model, l_max=L, filter=own)
    filters = [op.conv.filter for op in operators(model)]
    assert filters[0] is not filters[1]
    assert own not in filters
    assert torch.equal(filters[0](L), own(L))


# The registry


class MyAttention(nn.Module):
    """Attention that nobody knows."""

    def __init__(self):
        super().__init__()
        self.qkv, self.heads = nn.Linear(D, 3 * D), M

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.qkv(x)[..., :D] * scale


class Scaled(nn.Module):
    def __init__(self, operator: HyenaOperator):
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.operator(x) * scale


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    "match",
    [MyAttention, "MyAttention", f"{__name__}.MyAttention", lambda m: hasattr(m, "qkv")],
    ids=["class", "name", "full name", "function"],
)
def test_users_can_teach_it(match: type | str | Callable):
    class Child(MyAttention):
        pass

    def build(site: AttentionSite) -> nn.Module:
        if site.name == "0":
            raise CannotReplaceError("the first one is special")
        return Scaled(site.operator(D, heads=site.module.heads, causal=True, dropout=0.5, bias=False))

    model = nn.Sequential(MyAttention(), MyAttention(), Child().double().eval())
    with pytest.raises(ValueError, match="MyAttention stays: not known"):
        replace_attention(model, l_max=L)
    register_attention(match, build)
    report = replace_attention(model, l_max=L, multi_head=True)
    assert [entry.name for entry in report.replaced] == ["1", "2"]
    assert [(entry.name, entry.reason) for entry in report.kept] == [("0", "the first one is special")]
    first, second = operators(model)
    assert (first.causal, first.dropout.p, first.num_heads, first.in_proj.bias) == (True, 0.5, M, None)
    assert first.training
    assert second.in_proj.weight.dtype == torch.float64
    assert not second.training
    assert model[1](torch.randn(2, L, D), scale=2.0).shape == (2, L, D)


@pytest.mark.usefixtures("own_registry")
def test_what_was_taught_last_is_asked_first():
    register_attention(nn.MultiheadAttention, lambda site: nn.Identity())
    model = nn.Sequential(nn.MultiheadAttention(D, M))
    report = replace_attention(model)
    assert isinstance(model[0], nn.Identity)
    assert (report.replaced[0].new, report.replaced[0].l_max, report.replaced[0].causal) == ("Identity", None, None)


# nanoGPT


def test_nanogpt():
    model = TinyGPT(block_size=20)
    report = replace_attention(model)
    assert [entry.name for entry in report.replaced] == ["blocks.0.attn", "blocks.1.attn"]
    for op in operators(model):
        assert (op.causal, op.l_max, op.dropout.p, op.in_proj.bias) == (True, 20, 0.25, None)
    assert all(isinstance(block["attn"], SequenceAdapter) for block in model.blocks)
    assert model.blocks[0]["attn"].output_dropout.p == 0.125
    x = torch.randn(2, L, D)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    later = x.clone()
    later[:, 7:] += 1
    torch.testing.assert_close(model(later)[:, :7], model(x)[:, :7], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pass l_max"):
        replace_attention(TinyGPT().blocks[0])


def test_made_like_nanogpt_under_another_name():
    with pytest.raises(ValueError, match="pass causal="):
        replace_attention(TinyGPT(MixerOfTokens, block_size=20))
    model = TinyGPT(MixerOfTokens, block_size=20)
    replace_attention(model, causal=False)
    assert [op.causal for op in operators(model)] == [False] * LAYERS
