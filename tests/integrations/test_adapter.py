"""Adapters for models of one's own: right ones give what each row gives alone, wrong ones cannot be made or called."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import hyena.integrations.sites
from hyena import AttentionAdapter, HyenaOperator, register_attention, replace_attention
from hyena.integrations import MixerHistory

D, L = 8, 12
CLOSE = {"rtol": 0, "atol": 1e-11}


class OwnAttention(nn.Module):
    """Attention as people write it: a bool mask, rotary positions, a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        kv_cache: dict[str, Any] | None = None,
        need_weights: bool = False,
        scale: float = 1.0,
    ) -> tuple[Tensor, None]:
        raise AssertionError("this is to be replaced")


class OwnModel(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OwnAttention() for _ in range(layers))

    def forward(self, x: Tensor, caches: list[dict[str, Any]] | None = None, **kwargs: Any) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = x + layer(x, kv_cache=None if caches is None else caches[i], **kwargs)[0]
        return x


class Right(AttentionAdapter):
    masks: ClassVar = {"mask": "keep"}
    cache = "kv_cache"
    ignored = ("rope",)
    used = ("scale",)

    def history(self, cache: dict[str, Any]) -> MixerHistory:
        return cache.setdefault("hyena", MixerHistory())

    def result(self, y: Tensor, given: dict[str, Any]) -> tuple[Tensor, None]:
        return y * given.get("scale", 1.0), None


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hyena.integrations.sites, "_BUILDERS", list(hyena.integrations.sites._BUILDERS))


def replaced(adapter: type[AttentionAdapter], *, causal: bool = True) -> nn.Module:
    model = OwnModel()
    register_attention(OwnAttention, lambda site: adapter(site.mixer(D, causal=causal), site.module))
    replace_attention(model, l_max=L)
    return model.double().eval()


def inputs() -> tuple[Tensor, Tensor]:
    """Three rows, and what is not padding of them."""
    keep = torch.arange(L) >= torch.tensor([[0], [5], [L - 1]])
    return torch.randn(3, L, D, dtype=torch.float64), keep


# Right ones


@pytest.mark.parametrize("form", ["bool", "int", "rows", "square", "additive"])
def test_padded_rows_give_what_they_give_alone(form: str) -> None:
    model = replaced(Right)
    x, keep = inputs()
    causal = keep[:, None, None] & torch.ones(L, L, dtype=torch.bool).tril()
    mask = {
        "bool": keep,
        "int": keep.long(),
        "rows": keep[:, None, None],
        "square": causal,
        "additive": torch.zeros(3, 1, L, L, dtype=torch.float64).masked_fill(~causal, -torch.inf),
    }[form]
    y = model(x, mask=mask, rope=torch.randn(L, 4))
    for i in range(3):
        torch.testing.assert_close(y[i, keep[i]], model(x[i : i + 1, keep[i]])[0], **CLOSE)
    assert not torch.allclose(model(x)[1, keep[1]], y[1, keep[1]])  # padding matters


@torch.no_grad()
def test_decoding_with_a_cache_gives_the_whole_sequence() -> None:
    model = replaced(Right)
    x, keep = inputs()
    want = model(x, mask=keep)
    for pieces in ([L], [7, *[1] * (L - 7)], [1] * L, [5, 4, 3]):
        caches: list[dict[str, Any]] = [{}, {}]
        got, done = [], 0
        for piece in pieces:
            got.append(model(x[:, done : done + piece], caches, mask=keep[:, : done + piece]))
            done += piece
        for i in range(3):
            torch.testing.assert_close(torch.cat(got, 1)[i, keep[i]], want[i, keep[i]], **CLOSE)


def test_what_result_uses() -> None:
    model = replaced(Right)
    x, _ = inputs()
    torch.testing.assert_close(model.layers[0](x, scale=2.0)[0], 2 * model.layers[0](x)[0])
    assert model.layers[0](x, None, None, None, False, 1.0)[1] is None


def test_torch_style_padding_and_axes() -> None:
    class LengthFirst(nn.Module):
        def forward(self, query, key_padding_mask=None, attn_mask=None, is_causal=False):
            raise AssertionError

    class Adapter(AttentionAdapter):
        inputs, batch_first = "query", False
        masks: ClassVar = {"key_padding_mask": "ignore", "attn_mask": "causal"}

    mixer = HyenaOperator(D, L).double()
    adapter = Adapter(mixer, LengthFirst())
    x, keep = inputs()
    want = mixer(x, keep).transpose(0, 1)
    x = x.transpose(0, 1)
    additive = torch.zeros(3, L).masked_fill(~keep, -torch.inf)
    above = torch.ones(L, L, dtype=torch.bool).triu(1)
    for padding in (~keep, additive, ~keep[:, None, None]):
        for causal in (above, ~above, torch.zeros(L, L).masked_fill(above, -torch.inf), above[None, None], None):
            y = adapter(x, key_padding_mask=padding, attn_mask=causal, is_causal=True)
            torch.testing.assert_close(y[:, 0], want[:, 0], **CLOSE)
            torch.testing.assert_close(y[5:, 1], want[5:, 1], **CLOSE)
    window = above | torch.ones(L, L, dtype=torch.bool).tril(-3)
    with pytest.raises(ValueError, match=r"attn_mask of shape \(12, 12\) is not the causal mask"):
        adapter(x, attn_mask=window)
    with pytest.raises(ValueError, match=r"attn_mask of shape \(3, 12\) does not fit 12 new positions out of 12"):
        adapter(x, attn_mask=keep)
    two_sided = Adapter(HyenaOperator(D, L, causal=False).double(), LengthFirst())
    with pytest.raises(ValueError, match="causal=False, which sees all"):
        two_sided(x, attn_mask=above)
    with pytest.raises(ValueError, match="is_causal=True was passed to a mixer with causal=False"):
        two_sided(x, is_causal=True)


def test_without_the_replaced_module() -> None:
    x, _ = inputs()
    mixer = HyenaOperator(D, L).double()
    assert torch.equal(AttentionAdapter(mixer)(x), mixer(x))
    assert torch.equal(AttentionAdapter(mixer)(x=x), mixer(x))


def test_compiles_and_copies() -> None:
    adapter = Right(HyenaOperator(D, L), OwnAttention()).eval()
    x, keep = inputs()
    x = x.float()
    want = adapter(x, mask=keep)[0]
    assert torch.equal(copy.deepcopy(adapter)(x, mask=keep)[0], want)
    with torch.no_grad():
        got = torch.compile(adapter, fullgraph=True, backend="eager")(x, mask=keep)[0]
    torch.testing.assert_close(got[0], want[0])


# The adapters that people write first


def test_ignoring_padding_is_impossible() -> None:
    class Undeclared(AttentionAdapter):
        ignored = ("rope",)

        def result(self, y, given):
            return y, None

    x, keep = inputs()
    model = replaced(Undeclared)
    assert model(x, rope=torch.randn(L, 4)).shape == x.shape
    with pytest.raises(TypeError, match=r"mask=a tensor \(bool, \(3, 12\)\) was passed to Undeclared"):
        model(x, mask=keep)
    with pytest.raises(TypeError, match=r"kv_cache=\{\} was passed to Undeclared, which does not say what it means"):
        model(x, [{}, {}])
    with pytest.raises(TypeError, match=r"need_weights=True was passed to Undeclared"):
        model(x, need_weights=True)
    with pytest.raises(TypeError, match=r"scale=2.0 was passed to Undeclared"):
        model(x, scale=2.0)
    with pytest.raises(TypeError, match="nonsense=1 was passed to Undeclared"):
        model(x, nonsense=1)


@pytest.mark.parametrize(
    "name", ["mask", "attn_mask", "kv_cache", "past_key_values", "cu_seqlens", "padding", "use_cache"]
)
@pytest.mark.parametrize("place", ["ignored", "used"])
def test_masks_and_caches_cannot_be_declared_away(name: str, place: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' among what it ignores"):
        type("Wrong", (AttentionAdapter,), {place: (name,)})


def test_masks_and_caches_under_other_names() -> None:
    class Hidden(AttentionAdapter):
        ignored = ("rope",)

        def result(self, y, given):
            return y, None

    x, keep = inputs()
    model = replaced(Hidden)
    with pytest.raises(TypeError, match=r"ignores 'rope', and got a tensor \(bool, \(3, 12\)\) there.*like a mask"):
        model(x, rope=keep)
    with pytest.raises(TypeError, match=r"ignores 'rope', and got \{\} there, which looks like a cache"):
        model(x, rope={})


def test_forward_is_not_replaced() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.forward would take the place of AttentionAdapter\.forward"):

        class Wrong(AttentionAdapter):
            def forward(self, x, mask=None, kv_cache=None):
                return self.operator(x), None


def test_a_cache_without_a_history() -> None:
    with pytest.raises(TypeError, match=r"declares the cache 'kv_cache' and has no history\(cache\)"):
        type("Wrong", (AttentionAdapter,), {"cache": "kv_cache"})

    class Keys(Right):
        def history(self, cache):
            return cache

    with pytest.raises(TypeError, match=r"Keys\.history must return a MixerHistory, got dict"):
        replaced(Keys)(inputs()[0], [{}, {}])


@pytest.mark.parametrize(
    "found", [None, torch.ones(3, L), torch.ones(1, L, dtype=torch.bool)], ids=["None", "float", "row"]
)
def test_keep_returns_a_mask(found: Any) -> None:
    class Wrong(Right):
        def keep(self, name, mask, x, seen):
            return found

    x, keep = inputs()
    with pytest.raises(TypeError, match=r"Wrong\.keep must return a bool tensor of shape \(3, 12\) for mask"):
        replaced(Wrong)(x, mask=keep)


@torch.no_grad()
def test_what_a_cache_cannot_do_raises() -> None:
    x, keep = inputs()
    two_sided, caches = replaced(Right, causal=False), [{}, {}]
    two_sided(x[:, :4], caches)
    with pytest.raises(ValueError, match="two-sided mixer"):
        two_sided(x[:, 4:5], caches)
    model, caches = replaced(Right), [{}, {}]
    model(x[:, :4], caches, mask=keep[:, :4])
    with pytest.raises(ValueError, match=r"shape \(3, 1\) does not fit 3 rows of 1 new positions out of 5"):
        model(x[:, 4:5], caches, mask=keep[:, 4:5])  # the mask of the new position alone
    with pytest.raises(ValueError, match="the mask of the 4 cached positions differs"):
        model(x[:, 4:5], caches)


def test_other_masks_raise() -> None:
    model = replaced(Right)
    x, _ = inputs()
    with pytest.raises(ValueError, match="more than padding and causality"):
        model(x, mask=torch.randn(3, 1, L, L, dtype=torch.float64))
    with pytest.raises(ValueError, match="mask must be a tensor, got list"):
        model(x, mask=[1, 2])
    with pytest.raises(ValueError, match=r"\(12, 3\) does not fit"):
        model(x, mask=torch.ones(L, 3))


def test_false_where_the_default_is_true_asks_for_something() -> None:
    class Causal(nn.Module):
        def forward(self, x, is_causal=True, gated=True, need_weights=None):
            raise AssertionError

    adapter, x = AttentionAdapter(HyenaOperator(D, L), Causal()), torch.randn(2, L, D)
    assert torch.equal(adapter(x, is_causal=True, gated=True, need_weights=False), adapter(x))
    with pytest.raises(ValueError, match="is_causal=False was passed to a mixer with causal=True"):
        adapter(x, is_causal=False)
    with pytest.raises(TypeError, match="gated=False was passed to AttentionAdapter"):
        adapter(x, gated=False)


def test_declarations_that_do_not_fit() -> None:
    mixer = HyenaOperator(D, L)
    with pytest.raises(TypeError, match=r"declares 'attn_bias', and OwnAttention\.forward has the arguments x, rope"):
        type("Wrong", (AttentionAdapter,), {"ignored": ("attn_bias",)})(mixer, OwnAttention())
    with pytest.raises(TypeError, match="declares 'hidden', and OwnAttention"):
        type("Wrong", (AttentionAdapter,), {"inputs": "hidden"})(mixer, OwnAttention())
    with pytest.raises(TypeError, match=r"masks has \{'mask': 'true'\}: a mask says one of keep, ignore, causal"):
        type("Wrong", (AttentionAdapter,), {"masks": {"mask": "true"}})
    with pytest.raises(TypeError, match="declares rope more than once"):
        type("Wrong", (AttentionAdapter,), {"ignored": ("rope",), "used": ("rope",)})

    class Needs(nn.Module):
        def forward(self, x, position_bias):
            raise AssertionError

    with pytest.raises(
        TypeError, match="argument 'position_bias' without a default, and AttentionAdapter does not say"
    ):
        AttentionAdapter(mixer, Needs())
    adapter = Right(mixer, OwnAttention())
    x = torch.randn(1, 3, D)
    with pytest.raises(TypeError, match="two values for x"):
        adapter(x, x=x)
    with pytest.raises(TypeError, match="missing its argument 'x'"):
        adapter(mask=torch.ones(1, 3))
    with pytest.raises(TypeError, match="takes 6 positional arguments"):
        adapter(x, None, None, None, None, None, 7)
