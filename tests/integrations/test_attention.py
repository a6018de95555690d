"""HyenaAttention against nn.MultiheadAttention's contract."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from helpers.swapped_attention import (
    CLOSE,
    SIZES,
    E,
    L,
    M,
    as_float,
    attention,
    batch,
    by_definition,
    causal_mask,
    ignored,
)
from helpers.tolerances import TOLERANCE
from hyena.integrations.attention import HyenaAttention

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
    assert attention(short_taps=5, order=3).operator.in_proj.out_features == 4 * E


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


@pytest.mark.parametrize("batch_first", [True, False])
def test_steps_are_calls(batch_first: bool) -> None:
    """Hooks run in prefill and step, and the outputs are those of the whole."""
    attn = HyenaAttention(E, M, l_max=L, causal=True, batch_first=batch_first).double().eval()
    x = torch.randn(*((2, L) if batch_first else (L, 2)), E, dtype=torch.float64)
    called: list[int] = []
    attn.register_forward_hook(lambda module, inputs, y: called.append(1) or (2 * y[0], None))
    want, along = attn(x, x, x, is_causal=True)[0], 1 if batch_first else 0
    state = attn.init_state(2)
    assert attn.state_size(2) == state.size()
    first, *rest = x.split([L - 2, 1, 1], dim=along)
    out = [attn.prefill(first, state)[0], *(attn.step(t.squeeze(along), state)[0].unsqueeze(along) for t in rest)]
    torch.testing.assert_close(torch.cat(out, dim=along), want, rtol=0, atol=1e-11)
    assert len(called) == 4
    with pytest.raises(ValueError, match="no attn_mask"):
        attn(x, x, x, attn_mask=torch.ones(L, L).triu(1).bool(), state=attn.init_state(2))
    with pytest.raises(ValueError, match="prefill takes several"):
        attn.step(x, state)
