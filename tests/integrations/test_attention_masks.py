"""HyenaAttention's masks: padding, causality, and what no Hyena operator can honour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import hyena.integrations.masks
from helpers.swapped_attention import CLOSE, L, M, as_float, attention, batch, causal_mask, ignored, row, window
from hyena.integrations.masks import keep_from_model_mask

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


@pytest.mark.parametrize("behind", ["in place", "through .data", "in shared memory", "detached"])
@pytest.mark.parametrize("kind", ["padding", "causal", "model"])
def test_a_mask_that_changed_is_checked_again(kind: str, behind: str):
    values = np.zeros((3, L) if kind == "padding" else (L, L), dtype=np.float32)
    if kind != "padding":
        values[np.triu_indices(L, 1)] = -np.inf
    mask = torch.from_numpy(values)
    attn, x = attention(causal=kind != "padding"), batch()

    def run() -> None:
        if kind == "model":
            keep_from_model_mask(mask.expand(3, 1, L, L), 3, L, L, causal=True)
        elif kind == "padding":
            attn(x, x, x, key_padding_mask=mask)
        else:
            attn(x, x, x, attn_mask=mask)

    for _ in range(2):
        run()
    target = {"in place": mask, "through .data": mask.data, "in shared memory": values, "detached": mask.detach()}
    target[behind][0, 0] = 0.5
    with pytest.raises(ValueError, match="Hyena can"):
        run()


@pytest.mark.cuda
def test_on_a_gpu_masks_are_remembered_until_they_are_written_to(monkeypatch: pytest.MonkeyPatch):
    attn, x, mask = attention().cuda(), batch(device="cuda"), as_float(ignored("right")).cuda()
    looks = []
    everything = torch.Tensor.all
    monkeypatch.setattr(torch.Tensor, "all", lambda t: looks.append(t) or everything(t))
    for _ in range(3):
        attn(x, x, x, key_padding_mask=mask)
    assert len(looks) == 1
    mask[0, 0] = 0.5
    with pytest.raises(ValueError, match=r"0\.5"):
        attn(x, x, x, key_padding_mask=mask)
    for _ in range(20):
        attn(x, x, x, key_padding_mask=as_float(ignored("right")).cuda())
    assert len(hyena.integrations.masks._CHECKED) <= 8


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
