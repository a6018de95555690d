"""replace_attention in torch's, transformers' and nanoGPT-style models: padding, causality, caches, reports."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

import hyena.sites
from hyena.adapters import PaddingHook, SequenceAttention, TransformersAttention
from hyena.attention import HyenaAttention
from hyena.filters import HyenaFilter
from hyena.operator import HyenaOperator
from hyena.replace import replace_attention
from hyena.sites import AttentionSite, CannotReplaceError, register_attention

D, M, L, LAYERS, VOCAB = 16, 4, 12, 2, 40
SIZES = [12, 7, 1]
EXACT = {"rtol": 0, "atol": 1e-11}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def gpt2(impl: str = "sdpa", cls: type = transformers.GPT2LMHeadModel, **kwargs) -> nn.Module:
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "loss_type": "ForCausalLMLoss"}
    sizes = {"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": M, "n_positions": 32}
    config = transformers.GPT2Config(**special | sizes | NO_DROPOUT | kwargs)
    return cls._from_config(config, attn_implementation=impl).double().eval()


def bert(impl: str = "sdpa", cls: type = transformers.BertForMaskedLM, **kwargs) -> nn.Module:
    sizes = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": M}
    more = {"intermediate_size": 2 * D, "max_position_embeddings": 32, "loss_type": "ForMaskedLM"}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes | more | none | kwargs)
    return cls._from_config(config, attn_implementation=impl).double().eval()


def bert_decoder(impl: str = "sdpa") -> nn.Module:
    return bert(impl, transformers.BertLMHeadModel, is_decoder=True, loss_type="ForCausalLMLoss")


def vit(**kwargs) -> nn.Module:
    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": M, "intermediate_size": 2 * D}
    config = transformers.ViTConfig(**sizes | {"image_size": 12, "patch_size": 4} | kwargs)
    return transformers.ViTForImageClassification(config)


LANGUAGE_MODELS = [gpt2, bert, bert_decoder]


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (3, L), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> tuple[Tensor, Tensor]:
    """The (3, L) attention mask, 1 = keep, and positions that count what is kept."""
    at, size = torch.arange(L), torch.tensor(SIZES)[:, None]
    mask = (at < size if side == "right" else at >= L - size).long()
    return mask, (mask.cumsum(1) - 1).clamp_min(0)


class CausalSelfAttention(nn.Module):
    """What a nanoGPT-style model calls its attention, as far as a swap looks at it."""

    def __init__(self, width: int = D, heads: int = M, *, bias: bool = False):
        super().__init__()
        self.n_head = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.25), nn.Dropout(0.125)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


class MixerOfTokens(CausalSelfAttention):
    """The same under a name that says nothing."""


class TinyGPT(nn.Module):
    """A stack of such attention with a config on top, as nanoGPT has it."""

    def __init__(self, kind: type[nn.Module] = CausalSelfAttention, **config):
        super().__init__()
        self.config = type("Config", (), config)()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": kind()}) for _ in range(LAYERS)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["attn"](x)
        return x


def operators(model: nn.Module) -> list[HyenaOperator]:
    return [m for m in model.modules() if isinstance(m, HyenaOperator)]


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyena.sites, "_BUILDERS", list(hyena.sites._BUILDERS))


def test_transformers_is_not_imported():
    code = "import sys, hyena.replace; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# torch


def test_a_whole_transformer():
    model = nn.Transformer(D, M, 2, 2, 32, 0.0, batch_first=True).double()
    report = replace_attention(model, l_max=L)
    assert len(report) == 4
    assert [(r.name, r.old, r.new, r.l_max, r.causal) for r in report.replaced[1:3]] == [
        ("encoder.layers.1.self_attn", "MultiheadAttention", "HyenaAttention", L, False),
        ("decoder.layers.0.self_attn", "MultiheadAttention", "HyenaAttention", L, True),
    ]
    assert [entry.name for entry in report.left] == [f"decoder.layers.{i}.multihead_attn" for i in range(2)]
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
    replace_attention(model, l_max=9, causal=True, order=3, filter_order=8)
    new = model[1]
    assert isinstance(new, HyenaAttention)
    assert (new.embed_dim, new.num_heads, new.dropout, new.batch_first, new.causal) == (D, M, 0.25, True, True)
    assert new.in_proj_bias is None
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
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
    assert [(entry.name, entry.reason) for entry in report.left] == [("layers.1.self_attn", "where= leaves it")]


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
    assert {entry.name: entry.kind for entry in report.left} == {
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
    with pytest.raises(ValueError, match="has 1 Hyena operators already"):
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
    filters = [op.filter for op in operators(model)]
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
    assert [(entry.name, entry.reason) for entry in report.left] == [("0", "the first one is special")]
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
    assert all(isinstance(block["attn"], SequenceAttention) for block in model.blocks)
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


# transformers


@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_sizes_and_directions_come_from_the_config(make: Callable):
    model = make().train()
    before = copy.deepcopy(model.config.to_dict())
    report = replace_attention(model)
    assert len(report) == LAYERS
    assert not report.left
    for op in operators(model):
        assert (op.l_max, op.causal, op.d_model, op.training) == (32, make is not bert, D, True)
        assert op.in_proj.weight.dtype == torch.float64
    assert model.config.to_dict() == before  # models that share it are not touched
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    changed = make()
    replace_attention(changed, l_max=50, causal=False, order=3)
    assert all((op.l_max, op.causal, op.order) == (50, False, 3) for op in operators(changed))


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("carried", ["by the hook", "in the model's own masks"])
@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_padded_rows_give_what_they_give_alone(make: Callable, carried: str, side: str, impl: str):
    model = make(impl)
    replace_attention(model)
    base = model.base_model
    assert [type(hook) for hook in base._forward_pre_hooks.values()] == [PaddingHook]
    if carried == "in the model's own masks":
        base._forward_pre_hooks.clear()
    mask, positions = padding(side)
    x = model.get_input_embeddings()(tokens()).detach()

    def run(x: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        logits = model(inputs_embeds=x, **kwargs).logits
        keep = kwargs.get("attention_mask", torch.ones(x.shape[:2])).bool()
        return logits, torch.autograd.grad(logits[keep].square().sum(), x)[0]

    logits, gradient = run(x, attention_mask=mask, position_ids=positions)
    for i, n in enumerate(SIZES):
        rows = slice(None, n) if side == "right" else slice(L - n, None)
        want, want_gradient = run(x[i : i + 1, rows])
        torch.testing.assert_close(logits[i, rows], want[0], **EXACT)
        torch.testing.assert_close(gradient[i, rows], want_gradient[0], **EXACT)
        one, _ = run(x[i : i + 1], attention_mask=mask[i : i + 1], position_ids=positions[i : i + 1])
        torch.testing.assert_close(one[0, rows], want[0], **EXACT)


@pytest.mark.parametrize("make", LANGUAGE_MODELS)
def test_trains(make: Callable):
    model = make().train()
    replace_attention(model)
    mask, _ = padding("right")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = model(tokens(), attention_mask=mask, labels=tokens().masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("make", [gpt2, bert_decoder])
def test_causal_models_stay_causal(make: Callable):
    model, x = make(), tokens()
    replace_attention(model)
    later = torch.cat([x[:, :7], tokens(1)[:, 7:]], dim=1)
    torch.testing.assert_close(model(later).logits[:, :7], model(x).logits[:, :7], **EXACT)
    assert (model(later).logits[:, 7:] - model(x).logits[:, 7:]).abs().max() > 1e-3


def test_bert_has_no_second_output_projection():
    model = bert()
    attention = model.bert.encoder.layer[0].attention
    count = sum(p.numel() for p in attention.parameters())
    replace_attention(model)
    op = operators(model)[0]
    assert not list(op.out_proj.parameters())
    rest = [op.short_weight, op.short_bias, op.filter_bias, *op.filter.parameters()]
    assert sum(p.numel() for p in attention.parameters()) == count + sum(p.numel() for p in rest)
    op.reset_parameters()
    wide = bert()
    replace_attention(wide, inner_factor=2)
    assert operators(wide)[0].out_proj.weight.shape == (D, 2 * D)
    assert wide(tokens()).logits.isfinite().all()


def test_layers_get_padding_as_rows_and_not_as_squares():
    model, shapes = gpt2("eager"), []
    replace_attention(model)
    for block in model.transformer.h:
        block.attn.register_forward_pre_hook(
            lambda m, args, kwargs: shapes.append(kwargs["attention_mask"].shape), with_kwargs=True
        )
    mask, _ = padding("right")
    want = model(tokens(), attention_mask=mask).logits
    assert set(shapes) == {(3, 1, 1, L)}
    position = list(inspect.signature(model.transformer.forward).parameters).index("attention_mask")
    args = [tokens(), *[None] * (position - 1), mask]
    hidden = model.transformer(*args).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), want, **EXACT)


def test_vit():
    model = vit()
    report = replace_attention(model)
    assert [entry.l_max for entry in report.replaced] == [10, 10]
    pixels = torch.randn(2, 3, 12, 12)
    loss = model(pixels, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        x = torch.randn(2, 10, D)
        y = model.vit.layers[0].attention(x)[0]
        x[:, -1] += 1
        assert (model.vit.layers[0].attention(x)[0] - y)[:, 0].abs().max() > 1e-6  # two-sided
    wide = vit(image_size=(8, 16), patch_size=(4, 2))
    assert replace_attention(wide).replaced[0].l_max == 17
    assert wide(torch.randn(1, 3, 8, 16)).logits.isfinite().all()


@pytest.mark.parametrize("make", [gpt2, bert_decoder])
def test_generation_with_a_cache_is_right(make: Callable):
    model = make()
    replace_attention(model)
    mask, positions = padding("left")
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": 1}
    want = model.generate(tokens(), use_cache=False, **settings)
    assert torch.equal(model.generate(tokens(), use_cache=True, **settings), want)
    beams = model.generate(tokens(), use_cache=False, num_beams=3, **settings)
    assert torch.equal(model.generate(tokens(), use_cache=True, num_beams=3, **settings), beams)
    # by hand, in chunks, with and without a mask
    whole = model(tokens(), attention_mask=mask, position_ids=positions).logits
    plain = model(tokens(), use_cache=False).logits
    cache, bare, got, got_plain = None, None, [], []
    for start, stop in ((0, 5), (5, 6), (6, 10), (10, 12)):
        part = tokens()[:, start:stop]
        out = model(
            part,
            attention_mask=mask[:, :stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        got.append(out.logits)
        out = model(part, past_key_values=bare, use_cache=True)
        bare = out.past_key_values
        got_plain.append(out.logits)
    torch.testing.assert_close(torch.cat(got, dim=1)[mask.bool()], whole[mask.bool()], **EXACT)
    torch.testing.assert_close(torch.cat(got_plain, dim=1), plain, **EXACT)


def test_a_cache_that_cannot_serve_raises():
    model = gpt2()
    replace_attention(model)
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(tokens(), max_new_tokens=2, cache_implementation="static", pad_token_id=2)
    two_sided = gpt2()
    replace_attention(two_sided, causal=False)
    cache = two_sided(tokens()).past_key_values
    with pytest.raises(ValueError, match="12 positions are cached"):
        two_sided(tokens()[:, :1], past_key_values=cache)


def test_dropout_of_the_output_stays():
    x = torch.randn(3, L, D).double()
    model, other = gpt2(resid_pdrop=0.5), nn.Sequential(CausalSelfAttention()).double()
    replace_attention(model)
    replace_attention(other, l_max=L)
    for layer in (model.transformer.h[0].attn, other[0]):
        dropped = layer.train()(x)
        kept = layer.eval()(x)
        dropped, kept = (t[0] if isinstance(t, tuple) else t for t in (dropped, kept))
        assert 0.05 < (dropped == 0).double().mean() < 0.6
        assert (kept != 0).all()


class Window:
    """A cache that forgets."""

    def get_seq_length(self, layer: int) -> int:
        return 0

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return keys[:, :, -4:], values


def test_a_cache_that_forgets_raises():
    model = gpt2()
    replace_attention(model)
    layer = model.transformer.h[0].attn
    with pytest.raises(ValueError, match="a Window does not give back"):
        layer(torch.randn(3, L, D).double(), past_key_values=Window())
    layer.layer_idx = None
    with pytest.raises(ValueError, match="use_cache=False"):
        layer(torch.randn(3, L, D).double(), past_key_values=Window())


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_what_attention_can_and_hyena_cannot_raises(impl: str):
    model = gpt2(impl)
    replace_attention(model)
    two_rows = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    with pytest.raises(ValueError, match="packed rows"):
        model(tokens(), position_ids=two_rows, use_cache=False)
    window = torch.ones(L, L, dtype=torch.bool).tril().triu(-3).expand(3, 1, L, L)
    with pytest.raises(ValueError, match=r"\(3, 1, 12, 12\)"):
        model(tokens(), attention_mask=window)
    with pytest.raises(ValueError, match=r"\(3, 1, 1, 11\) does not fit"):
        model(tokens(), attention_mask=torch.ones(3, 11))
    with pytest.raises(ValueError, match="to_matrix"):
        model(tokens(), output_attentions=True)
    biased = torch.zeros(3, 1, 1, L).index_fill(3, torch.tensor([2]), -1.0)
    with pytest.raises(ValueError, match="more than padding"):
        model(tokens(), attention_mask=biased)
    layer = model.transformer.h[0].attn
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        layer(torch.randn(1, L, D).double(), cu_seq_lens_q=torch.tensor([0, L]))
    with pytest.raises(ValueError, match="cross-attention"):
        layer(torch.randn(1, L, D).double(), encoder_hidden_states=torch.randn(1, L, D).double())
    with pytest.raises(ValueError, match="attn_implementation"):
        layer(torch.randn(1, L, D).double(), attention_mask="BlockMask")


def test_a_model_that_keeps_some_attention():
    model = gpt2()
    replace_attention(model, where=lambda name, module: ".0." in name)
    assert not model.transformer._forward_pre_hooks  # the attention that stays needs the model's own masks
    mask, positions = padding("left")
    out = model(tokens(), attention_mask=mask, position_ids=positions).logits
    for i, n in enumerate(SIZES):
        torch.testing.assert_close(out[i, L - n :], model(tokens()[i : i + 1, L - n :]).logits[0], **EXACT)
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(
        model.generate(tokens(), use_cache=True, **settings), model.generate(tokens(), use_cache=False, **settings)
    )
    replace_attention(model)
    assert len(model.transformer._forward_pre_hooks) == 1
    again = model(tokens(), attention_mask=mask, position_ids=positions).logits
    for i, n in enumerate(SIZES):
        torch.testing.assert_close(again[i, L - n :], model(tokens()[i : i + 1, L - n :]).logits[0], **EXACT)


def test_an_encoder_and_a_decoder():
    decoder = bert(cls=transformers.BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(encoder=bert(cls=transformers.BertModel), decoder=decoder).eval()
    report = replace_attention(model)
    assert [entry.causal for entry in report.replaced] == [False] * LAYERS + [True] * LAYERS
    assert [entry.kind for entry in report.left] == ["BertCrossAttention"] * LAYERS
    mask, _ = padding("right")
    out = model(tokens(), attention_mask=mask, decoder_input_ids=tokens(1), decoder_attention_mask=mask).logits
    for i, n in enumerate(SIZES):
        alone = model(tokens()[i : i + 1, :n], decoder_input_ids=tokens(1)[i : i + 1, :n]).logits
        torch.testing.assert_close(out[i, :n], alone[0], **EXACT)
    settings = {"attention_mask": mask, "max_new_tokens": 4, "decoder_start_token_id": 3, "pad_token_id": 2}
    cached = model.generate(tokens(), use_cache=True, eos_token_id=1, **settings)
    assert torch.equal(cached, model.generate(tokens(), use_cache=False, eos_token_id=1, **settings))


def test_gpt2_with_cross_attention():
    model = gpt2(add_cross_attention=True)
    report = replace_attention(model)
    assert [entry.reason for entry in report.left] == ["cross-attention, between two sequences"] * LAYERS
    other = torch.randn(3, 5, D).double()
    mask, _ = padding("right")
    out = model(tokens(), attention_mask=mask, encoder_hidden_states=other).logits
    for i, n in enumerate(SIZES):
        alone = model(tokens()[i : i + 1, :n], encoder_hidden_states=other[i : i + 1]).logits
        torch.testing.assert_close(out[i, :n], alone[0], **EXACT)


def test_copies_and_checkpoints():
    model, (mask, _) = gpt2(), padding("right")
    replace_attention(model)
    want = model(tokens(), attention_mask=mask).logits
    fresh = gpt2()
    replace_attention(fresh)
    fresh.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(twin(tokens(), attention_mask=mask).logits, want)
        assert len(twin.transformer._forward_pre_hooks) == 1


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing():
    model, (mask, _) = gpt2().train(), padding("right")
    replace_attention(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(tokens(), attention_mask=mask, labels=tokens()).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    want = gradients()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for got, g in zip(gradients(), want, strict=True):
            torch.testing.assert_close(got, g, **EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole(masked: bool):
    model, (mask, _) = gpt2(n_layer=1), padding("right")
    replace_attention(model)
    kwargs = {"attention_mask": mask} if masked else {}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens(), **kwargs).logits, model(tokens(), **kwargs).logits, **EXACT)


def test_half_precision():
    mask, _ = padding("right")
    model = bert().to(torch.bfloat16)
    replace_attention(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    out = model(tokens(), attention_mask=mask).logits
    want = copy.deepcopy(model).double()(tokens(), attention_mask=mask).logits
    assert out.dtype == torch.bfloat16
    keep = mask.bool()
    assert (out.double() - want)[keep].abs().max() < 0.05 * want.abs().max()
    model = bert().float()
    replace_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(tokens(), attention_mask=mask).logits
    full = model(tokens(), attention_mask=mask).logits
    assert (half.float() - full)[keep].abs().max() < 0.05 * full.abs().max()


def test_a_row_that_is_all_padding_harms_nobody():
    model, (mask, _) = gpt2(), padding("right")
    replace_attention(model)
    want = model(tokens(), attention_mask=mask).logits
    mask[2] = 0
    out = model(tokens(), attention_mask=mask).logits
    assert out.isfinite().all()
    torch.testing.assert_close(out[:2], want[:2], **EXACT)
    assert isinstance(model.transformer.h[0].attn, TransformersAttention)
