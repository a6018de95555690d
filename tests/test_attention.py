"""HyenaAttention against nn.MultiheadAttention's contract, and inside torch's transformer layers."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

import hyena.masks
import oracle
from hyena.attention import HyenaAttention
from tolerances import TOLERANCE

E, M, L = 8, 4, 12
SIZES = [12, 7, 1]
CLOSE = {"rtol": 0, "atol": 2e-6}
EXACT = {"rtol": 0, "atol": 1e-12}


def attention(**kwargs) -> HyenaAttention:
    return HyenaAttention(E, M, **{"l_max": 16, "batch_first": True} | kwargs)


def batch(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(3, L, E, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def ignored(side: str) -> Tensor:
    """(3, L) bool, True = ignore, rows of SIZES positions."""
    at, size = torch.arange(L), torch.tensor(SIZES)[:, None]
    return at >= size if side == "right" else at < L - size


def as_float(ignore: Tensor) -> Tensor:
    return torch.zeros(ignore.shape).masked_fill(ignore, -torch.inf)


def row(x: Tensor, i: int, side: str) -> Tensor:
    """What is not padding of row i, as a batch of one."""
    return x[i : i + 1, : SIZES[i]] if side == "right" else x[i : i + 1, L - SIZES[i] :]


def causal_mask(kind: str, length: int = L) -> Tensor:
    above = torch.ones(length, length, dtype=torch.bool).triu(1)
    return above if "bool" in kind else as_float(above)


def by_definition(attn: HyenaAttention, x: Tensor, ignore: Tensor | None = None) -> Tensor:
    """The operator's equations in float64 with explicit matrices."""
    op = copy.deepcopy(attn.operator).double()
    z = op.in_proj(x.double())
    y = oracle.mix(
        z,
        op.short_weight,
        op.short_bias,
        op.filter(x.size(1)),
        op.filter_bias,
        None if ignore is None else ~ignore,
        order=op.order,
        causal=op.causal,
        num_heads=op.num_heads,
    )
    return op.out_proj(y)


# The constructor and forward


def test_arguments_have_attentions_names_and_places():
    for ours, theirs in (
        (HyenaAttention, nn.MultiheadAttention),
        (HyenaAttention.forward, nn.MultiheadAttention.forward),
    ):
        want = list(inspect.signature(theirs).parameters)
        assert list(inspect.signature(ours).parameters)[: len(want)] == want
    swapped = inspect.signature(HyenaAttention.forward).parameters
    for name, parameter in inspect.signature(nn.MultiheadAttention.forward).parameters.items():
        if name != "need_weights":  # attention's True would build an L x L matrix nobody looks at
            assert swapped[name].default == parameter.default, name
    assert swapped["need_weights"].default is False
    for name in vars(nn.MultiheadAttention(E, M)):
        assert hasattr(attention(), name), name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"add_bias_kv": True}, "add_bias_kv=True"),
        ({"add_zero_attn": True}, "add_zero_attn=True"),
        ({"kdim": 5}, "kdim=5"),
        ({"vdim": 6}, "vdim=6"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"dropout": 1.5}, r"1\.5"),
        ({"l_max": 0}, "l_max"),
    ],
)
def test_what_cannot_be_honoured_raises(wrong: dict, says: str):
    with pytest.raises(ValueError, match=says):
        HyenaAttention(**{"embed_dim": E, "num_heads": M, "l_max": 16} | wrong)


def test_unknown_keywords_raise():
    with pytest.raises(TypeError, match="filter_ordre"):
        attention(filter_ordre=32)
    with pytest.raises(TypeError, match="l_max"):
        HyenaAttention(E, M)
    assert attention(filter_order=24, order=3).operator.in_proj.out_features == 4 * E


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"order": 3, "value_filter": True}, {"multi_head": True}, {"bias": False}], ids=str
)
def test_follows_the_definition(causal: bool, options: dict):
    attn, x = attention(causal=causal, **options).double(), batch(torch.float64)
    for ignore in (None, ignored("left"), ignored("right")):
        got, weights = attn(x, x, x, key_padding_mask=ignore)
        assert weights is None
        want = by_definition(attn, x, ignore)
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[torch.float64] * want.abs().max().item())


def test_layouts_of_the_batch():
    attn, x = attention(), batch()
    want, weights = attn(x, x, x, key_padding_mask=ignored("right"), need_weights=True)
    attn.batch_first = False
    t = x.transpose(0, 1)
    got, same = attn(t, t, t, key_padding_mask=ignored("right"), need_weights=True)
    torch.testing.assert_close(got.transpose(0, 1), want, **CLOSE)
    torch.testing.assert_close(same, weights, **CLOSE)
    one, alone = attn(x[1], x[1], x[1], key_padding_mask=ignored("right")[1], need_weights=True)
    torch.testing.assert_close(one, want[1], **CLOSE)
    torch.testing.assert_close(alone, weights[1], **CLOSE)
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 8\)"):
        attn(x[None], x[None], x[None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype, device: str):
    attn, x = attention(causal=True).to(device, dtype), batch(dtype, device)
    out, weights = attn(x, x, x, key_padding_mask=ignored("left").to(device), need_weights=True)
    assert out.dtype == weights.dtype == dtype
    want = by_definition(attn.cpu(), x.cpu(), ignored("left"))
    torch.testing.assert_close(out.double().cpu(), want, rtol=0, atol=2 * TOLERANCE[dtype] * want.abs().max().item())


def test_autocast():
    attn, x = attention(), batch()
    want = attn(x, x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got, weights = attn(x, x, x, key_padding_mask=as_float(ignored("right")), need_weights=True)
    assert got.dtype == torch.bfloat16
    assert weights.isfinite().all()
    torch.testing.assert_close(got[0].float(), want[0], rtol=0, atol=0.05 * want.abs().max().item())


def test_dropout_acts_in_training_and_can_be_set():
    attn, x = attention(dropout=0.5), batch()
    assert not torch.equal(attn(x, x, x)[0], attn(x, x, x)[0])
    want = attn.eval()(x, x, x)[0]
    attn.train().dropout = 0.0
    torch.testing.assert_close(attn(x, x, x)[0], want, **CLOSE)


def test_copies_give_the_same():
    attn, x = attention(causal=True).eval(), batch()
    want = attn(x, x, x)[0]
    fresh = attention(causal=True).eval()
    fresh.load_state_dict(attn.state_dict())
    for twin in (copy.deepcopy(attn), pickle.loads(pickle.dumps(attn)), fresh):
        assert torch.equal(twin(x, x, x)[0], want)
    assert not any(
        "proj_weight" in name for name in attn.state_dict()
    )  # attention's names would load attention's weights


def test_initialisers_written_for_attention_reach_the_projections():
    attn = attention()
    nn.init.constant_(attn.in_proj_weight, 0.25)
    nn.init.constant_(attn.in_proj_bias, 0.5)
    nn.init.constant_(attn.out_proj.weight, 0.75)
    assert (attn.operator.in_proj.weight == 0.25).all()
    assert (attn.operator.in_proj.bias == 0.5).all()
    assert (attn.operator.out_proj.weight == 0.75).all()
    attn.reset_parameters()
    assert (attn.in_proj_weight != 0.25).any()


# One sequence


def test_cross_attention_raises():
    attn, x = attention(), batch()
    shifted = (x[:, :5], x[:, 1:6], x[:, :5])
    for q, k, v in (
        (x, x.clone(), x),
        (x, x, x + 1),
        (x + 1, x, x),
        (x, x[:, :5], x[:, :5]),
        (x, x, x.double()),
        shifted,
    ):
        with pytest.raises(ValueError, match=r"query and (key|value) differ"):
            attn(q, k, v)
    leaf = x.requires_grad_()
    with pytest.raises(ValueError, match="query and key differ"):
        attn(leaf, leaf.detach(), leaf)


def test_the_same_view_taken_thrice_is_one_sequence():
    attn, x = attention(batch_first=False), batch()
    got = attn(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0]
    t = x.transpose(0, 1)
    assert torch.equal(got, attn(t, t, t)[0])


def test_longer_than_l_max_raises():
    attn, x = attention(l_max=11), batch()
    with pytest.raises(ValueError, match=r"12 .*l_max=11"):
        attn(x, x, x)


# Padding


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_padded_rows_give_what_they_give_alone(kind: str, side: str, causal: bool):
    attn, x, ignore = attention(causal=causal), batch(), ignored(side)
    x = x.masked_fill(ignore[..., None], torch.nan).requires_grad_()
    out = attn(x, x, x, key_padding_mask=ignore if kind == "bool" else as_float(ignore))[0]
    out[~ignore].square().sum().backward()
    for i in range(3):
        alone = row(x.detach(), i, side).clone().requires_grad_()
        want = attn(alone, alone, alone)[0]
        want.square().sum().backward()
        torch.testing.assert_close(row(out, i, side), want, **CLOSE)
        torch.testing.assert_close(row(x.grad, i, side), alone.grad, rtol=1e-5, atol=1e-5)
        one = x[i : i + 1]
        batch_of_one = attn(one, one, one, key_padding_mask=ignore[i : i + 1])[0]
        torch.testing.assert_close(row(out, i, side), batch_of_one[:, ~ignore[i]], **CLOSE)
    assert (x.grad[ignore] == 0).all()


@pytest.mark.parametrize("value", [0.5, -1e9, -2.0, torch.inf, torch.nan])
def test_weighed_positions_raise(value: float):
    attn, x = attention(), batch()
    mask = torch.zeros(3, L)
    mask[1, 4] = value
    with pytest.raises(ValueError, match=f"got {value}".replace("+", r"\+")):
        attn(x, x, x, key_padding_mask=mask)


def test_masks_of_another_shape_or_type_raise():
    attn, x = attention(causal=True), batch()
    with pytest.raises(ValueError, match=r"\(3, 12\), got \(3, 11\)"):
        attn(x, x, x, key_padding_mask=torch.zeros(3, 11, dtype=torch.bool))
    with pytest.raises(ValueError, match="int64"):
        attn(x, x, x, key_padding_mask=torch.zeros(3, L, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(11, 12\)"):
        attn(x, x, x, attn_mask=torch.zeros(11, 12))
    with pytest.raises(ValueError, match="int64"):
        attn(x, x, x, attn_mask=torch.ones(L, L, dtype=torch.int64).triu(1))


def test_a_good_mask_is_looked_at_once_and_a_changed_one_again(monkeypatch: pytest.MonkeyPatch):
    attn, x, mask = attention(), batch(), as_float(ignored("right"))
    looks = []
    isfinite = torch.Tensor.all
    monkeypatch.setattr(torch.Tensor, "all", lambda t: looks.append(t) or isfinite(t))
    for _ in range(3):
        attn(x, x, x, key_padding_mask=mask)
    assert len(looks) == 1
    mask[0, 0] = 0.5
    with pytest.raises(ValueError, match=r"0\.5"):
        attn(x, x, x, key_padding_mask=mask)


# Causality


@pytest.mark.parametrize("kind", ["bool", "float", "3-D bool", "3-D float", "only is_causal"])
def test_the_causal_mask_is_accepted_on_a_causal_module(kind: str):
    attn, x = attention(causal=True), batch()
    want = attn(x, x, x)[0]
    mask = None if kind == "only is_causal" else causal_mask(kind)
    if "3-D" in kind:
        mask = mask.expand(3 * M, -1, -1)
    assert torch.equal(attn(x, x, x, attn_mask=mask, is_causal=mask is None)[0], want)
    if mask is not None:
        assert torch.equal(attn(x, x, x, attn_mask=mask, is_causal=True)[0], want)
    later = x.clone()
    later[:, 5:] += 1
    torch.testing.assert_close(attn(later, later, later, attn_mask=mask)[0][:, :5], want[:, :5], **CLOSE)


def no_mask() -> Tensor:
    return torch.zeros(L, L)


def window() -> Tensor:
    return causal_mask("float").masked_fill(torch.ones(L, L, dtype=torch.bool).tril(-3), -torch.inf)


def hole() -> Tensor:
    mask = causal_mask("bool")
    mask[5, 3] = True
    return mask


def bias() -> Tensor:
    return causal_mask("float") + torch.eye(L)


def padded() -> Tensor:
    mask = causal_mask("bool").repeat(3 * M, 1, 1)
    mask[0, :, 0] = True
    return mask


def transposed() -> Tensor:
    return causal_mask("bool").T


@pytest.mark.parametrize("make", [no_mask, window, hole, bias, padded, transposed])
@pytest.mark.parametrize("hint", [False, True])
def test_other_masks_raise(make, hint: bool):
    attn, x = attention(causal=True), batch()
    with pytest.raises(ValueError, match=r"other than the causal one.*key_padding_mask"):
        attn(x, x, x, attn_mask=make(), is_causal=hint)


def test_a_two_sided_module_takes_no_mask():
    attn, x = attention(causal=False), batch()
    for kwargs in ({"is_causal": True}, {"attn_mask": causal_mask("bool")}, {"attn_mask": torch.zeros(L, L)}):
        with pytest.raises(ValueError, match="causal=True"):
            attn(x, x, x, **kwargs)


# Weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 1},
        {"order": 3},
        {"value_filter": True},
        {"multi_head": True},
        {"multi_head": True, "order": 3},
        {"filter_groups": 2},
        {"inner_factor": 2},
        {"num_blocks": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_the_matrix_of_the_operator(options: dict, causal: bool):
    attn, x, ignore = attention(causal=causal, **options), batch(), ignored("right")
    matrix = attn.operator.to_matrix(x, ~ignore) * ~ignore[:, None, None]
    out, heads = attn(x, x, x, key_padding_mask=ignore, need_weights=True, average_attn_weights=False)
    assert heads.shape == (3, M, L, L)
    torch.testing.assert_close(heads, matrix.unflatten(1, (M, -1)).mean(2), **CLOSE)
    again, averaged = attn(x, x, x, key_padding_mask=ignore, need_weights=True)
    torch.testing.assert_close(averaged, matrix.mean(1), **CLOSE)
    assert (heads[1, :, :, 7:] == 0).all()
    assert (heads[1, :, 7:] == 0).all()
    assert torch.equal(out, again)
    averaged.sum().backward()
    assert attn.operator.in_proj.weight.grad.abs().sum() > 0


def test_weights_have_a_stated_length():
    attn, x = attention(max_weights_length=11), batch()
    attn(x, x, x)
    attn(x[:, :11], x[:, :11], x[:, :11], need_weights=True)
    with pytest.raises(ValueError, match=r"12 positions.*max_weights_length=11"):
        attn(x, x, x, need_weights=True)


def test_no_matrix_is_built_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HyenaAttention, "_weights", None)
    attn, x = attention(), batch()
    assert attn(x, x, x)[1] is None


# Nested tensors


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_rows(layout: torch.layout):
    attn, x = attention(causal=True), batch()
    rows = [x[i, :n].clone() for i, n in enumerate(SIZES)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    out, weights = attn(nested, nested, nested, is_causal=True)
    assert out.is_nested
    assert out.layout == layout
    assert weights is None
    for part, r in zip((nested + out).unbind(), rows, strict=True):
        torch.testing.assert_close(part, r + attn(r, r, r)[0], **CLOSE)
    for wrong in ({"need_weights": True}, {"attn_mask": causal_mask("bool")}, {"key_padding_mask": ignored("left")}):
        with pytest.raises(ValueError, match="nested"):
            attn(nested, nested, nested, **wrong)
    with pytest.raises(ValueError, match="differ"):
        attn(nested, x, x)
    with pytest.raises(ValueError, match="batch_first"):
        attention(batch_first=False)(nested, nested, nested)


# Inside torch's layers


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


def test_few_masks_are_remembered():
    attn, x = attention(), batch()
    for _ in range(20):
        attn(x, x, x, key_padding_mask=as_float(ignored("right")))
    assert len(hyena.masks._GOOD) <= 8
