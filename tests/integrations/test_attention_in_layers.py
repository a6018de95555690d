"""HyenaAttention inside torch's transformer layers, compiled and exported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.swapped_attention import (
    CLOSE,
    EXACT,
    SIZES,
    E,
    L,
    M,
    as_float,
    attention,
    batch,
    causal_mask,
    ignored,
    row,
    window,
)


@pytest.fixture
def no_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(*args, **kwargs):
        raise AssertionError("the fused path went around Hyena")

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", fused)


def encoder(*, swapped: str, **kwargs) -> nn.TransformerEncoder:
    """Two layers, Hyena put in before or after the encoder was built from the layer."""
    settings = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": True} | kwargs
    layer = nn.TransformerEncoderLayer(E, M, **settings)
    causal = False
    if swapped == "before":
        layer.self_attn = attention(batch_first=settings["batch_first"], causal=causal)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    stack = nn.TransformerEncoder(layer, 2)
    for built in stack.layers:
        built.self_attn = attention(batch_first=settings["batch_first"], causal=causal)
    return stack


@pytest.mark.usefixtures("no_fused_path")
@pytest.mark.parametrize("swapped", ["before", "after"])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"activation": "gelu", "batch_first": False}, {"bias": False}], ids=str
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_encoder_in_training_and_in_eval(options: dict, kind: str, swapped: str):
    model, x = encoder(swapped=swapped, **options), batch()
    x = x if options.get("batch_first", True) else x.transpose(0, 1)
    mask = {"none": None, "bool": ignored("right"), "float": as_float(ignored("right"))}[kind]
    want = model(x, src_key_padding_mask=mask)
    model.eval()
    assert torch.equal(model(x, src_key_padding_mask=mask), want)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model(x, src_key_padding_mask=mask), want, **CLOSE)
            layer = model.layers[0]
            torch.testing.assert_close(layer(x, src_key_padding_mask=mask), layer.train()(x, None, mask), **CLOSE)
            layer.eval()


@pytest.mark.usefixtures("no_fused_path")
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoder_rows_give_what_they_give_alone(side: str):
    model, x = encoder(swapped="before").double().eval(), batch(torch.float64)
    with torch.no_grad():
        out = model(x, src_key_padding_mask=ignored(side))
        for i in range(3):
            torch.testing.assert_close(row(out, i, side), model(row(x, i, side)), **EXACT)


@pytest.mark.usefixtures("no_fused_path")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_takes_nested_rows():
    model, x = encoder(swapped="before").double().eval(), batch(torch.float64)
    rows = [x[i, :n].clone() for i, n in enumerate(SIZES)]
    with torch.no_grad():
        out = model(torch.nested.nested_tensor(rows))
        for got, r in zip(out.unbind(), rows, strict=True):
            torch.testing.assert_close(got, model(r[None])[0], **EXACT)


@pytest.mark.usefixtures("no_fused_path")
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("hint", [None, True])
def test_causal_encoder(kind: str, hint: bool | None):
    model, x = encoder(swapped="before"), batch()
    for layer in model.layers:
        layer.self_attn = attention(causal=True)
    want = model(x)
    pad = ignored("right") if kind == "bool" else as_float(ignored("right"))
    torch.testing.assert_close(model(x, mask=causal_mask(kind), is_causal=hint), want, **CLOSE)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, mask=causal_mask(kind), is_causal=hint), want, **CLOSE)
        out = model(x, mask=causal_mask(kind), src_key_padding_mask=pad, is_causal=hint)
    torch.testing.assert_close(out[~ignored("right")], want[~ignored("right")], **CLOSE)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer(norm_first: bool):
    layer = nn.TransformerDecoderLayer(E, M, 16, 0.0, batch_first=True, norm_first=norm_first)
    layer.self_attn = attention(causal=True)
    model = nn.TransformerDecoder(layer, 2)
    x, memory = batch(), torch.randn(3, 5, E)
    want = model(x, memory, tgt_mask=causal_mask("float"), tgt_is_causal=True)
    later = x.clone()
    later[:, 6:] += 1
    torch.testing.assert_close(model(later, memory)[:, :6], want[:, :6], **CLOSE)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, memory, tgt_mask=causal_mask("bool")), want, **CLOSE)
        padded = model(x, memory, tgt_key_padding_mask=ignored("left"))
        for i in range(3):
            alone = model(row(x, i, "left"), memory[i : i + 1])
            torch.testing.assert_close(row(padded, i, "left"), alone, **CLOSE)


# Compiled


def test_compiles_whole_with_padding_of_any_length():
    layer = nn.TransformerEncoderLayer(E, M, 16, 0.0, batch_first=True)
    layer.self_attn = attention()
    x, mask = batch(), as_float(ignored("left"))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (L, 7):
        got = compiled(x[:, :n], src_key_padding_mask=mask[:, :n])
        torch.testing.assert_close(got, layer(x[:, :n], src_key_padding_mask=mask[:, :n]), **CLOSE)
    got.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    mask[0, 0] = 0.5
    with pytest.raises(RuntimeError, match="key_padding_mask holds"):
        compiled(x, src_key_padding_mask=mask)


def test_compiles_whole_with_inductor_and_the_causal_mask():
    attn, x = attention(causal=True, batch_first=False), batch()

    def call(x: Tensor, mask: Tensor) -> Tensor:
        return attn(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), attn_mask=mask)[0]

    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(x, causal_mask("float")), call(x, causal_mask("float")), **CLOSE)
    with pytest.raises(RuntimeError, match="other than the causal one"):
        compiled(x, window())


def test_compiled_cross_attention_raises():
    attn, x = attention(), batch()
    compiled = torch.compile(lambda q, k: attn(q, k, k)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, x), attn(x, x, x)[0])
    with pytest.raises(RuntimeError, match="query and key differ"):
        compiled(x, x + 1)


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict: bool):
    # In float64, because an exported filter is computed in other steps than one outside a graph.
    model, x, mask = encoder(swapped="before").double().eval(), batch().double(), ignored("right")
    program = torch.export.export(model, (x,), {"src_key_padding_mask": mask}, strict=strict).module()
    for m in (mask, ignored("left")):
        torch.testing.assert_close(program(x, src_key_padding_mask=m), model(x, src_key_padding_mask=m), **CLOSE)
